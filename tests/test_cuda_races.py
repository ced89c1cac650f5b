"""The CUDA kernels under ThreadSanitizer: what no barrier orders must not touch one place.

The cases stand in `race_cases.py`, for a Python of their own: the sanitizer has to come first.
"""

import re
import subprocess

from emulator import HERE, compile_library, watching


def test_nothing_races(tmp_path):
    python, environment = watching()
    for source in "kernels", "planted":
        # Not optimised: that would take the compiler longer than the cases take.
        flags = ["-O0", "-g1", "-fsanitize=thread", "-DTCWARP_THREADS=64"]
        # Two blocks and more even where a kernel runs on an eighth of the device.
        flags += ["-UTCWARP_ENOUGH", "-DTCWARP_ENOUGH=1024"]
        compile_library(source, tmp_path, *flags)
    # What is found is read case by case.
    options = f"log_path={tmp_path / 'report'} exitcode=0"
    command = [*python, *("-m", "pytest", "-q", "-p", "no:cacheprovider", HERE / "race_cases.py")]
    result = subprocess.run(
        command,
        env={**environment, "TCWARP_RACES": str(tmp_path), "TSAN_OPTIONS": options},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed and int(passed[1]) >= 60 and "skipped" not in result.stdout, result.stdout
