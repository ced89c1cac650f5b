"""Fetch the headers of older releases of torch, and print their folders as in PATH.

The sources read the same headers from the wheels of every platform; those for macOS are the
smallest, 80 MB, and are deleted once their headers are kept in the cache. A release that cannot be
fetched is left out, which is said loudly, and is no error.
"""

import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

RELEASES = ("2.10.0", "2.11.0")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "tcwarp"


def fetch(release: str, target: Path) -> None:
    """Put the headers into the folder, all of them or none."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
        pip += ["--no-cache-dir", "--no-deps", "--only-binary=:all:", "--python-version=3.11"]
        pip += ["--platform=macosx_11_0_arm64", "--dest", scratch, f"torch=={release}"]
        subprocess.run(pip, check=True, stdout=sys.stderr, timeout=300)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            wanted = ("torch/include/torch/", "torch/include/pybind11/")
            archive.extractall(scratch, [n for n in archive.namelist() if n.startswith(wanted)])
        (Path(scratch) / "torch").rename(target)


def main() -> None:
    """Fetch what is not there yet."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves no scratch folder
    found = []
    for release in RELEASES:
        folder = CACHE / f"torch-{release}"
        try:
            if not (folder / "include" / "torch").is_dir():
                fetch(release, folder)
            found.append(str(folder / "include"))
        except (OSError, ValueError, zipfile.BadZipFile, subprocess.SubprocessError) as error:
            reason = "pip failed" if isinstance(error, subprocess.SubprocessError) else error
            print(
                f"== NOT TRIED: the headers of torch {release} could not be fetched ({reason}): "
                "nothing was compiled against them",
                file=sys.stderr,
            )
    print(os.pathsep.join(found))


if __name__ == "__main__":
    main()
