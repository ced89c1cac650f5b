"""Damaged files, and trainings that are killed: `make torture MINUTES=10`.

Small valid files of every kind that tcseg reads are damaged at random and read again: what may come
is a result or an error of one line, in little time and memory. In turn a tiny training is stopped
by signals at random and resumed until it is finished: its weights must be those of one that was
never stopped, bit for bit. Prints how many were tried; ends with 1 if anything else came.
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK
from PIL import Image
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parent / "helpers"))
from made_up import write_dicom
from tiny import TINY

from tcseg.data import load_dataset
from tcseg.errors import DataError, RunError
from tcseg.io.images import read_pictures
from tcseg.io.planes import read_planes
from tcseg.runs.config import Config
from tcseg.runs.folder import RunFolder
from tcseg.runs.model import Model
from tcseg.use.report import report

SECONDS = 20  # for one file, on a busy machine
MEMORY = 4 * 2**30
MOST_SIGNALS = 12  # of one chain: a slow machine comes to its end as well
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def make_images(folder: Path) -> None:
    """Write one small file of each kind."""
    grey = np.add.outer(np.arange(30) * 5, np.arange(40)).astype(np.uint8)
    picture = Image.fromarray(grey)
    for kind in ("png", "jpg", "bmp", "gif", "webp"):
        picture.save(folder / f"a.{kind}")
    picture.convert("P").save(folder / "palette.png")
    picture.convert("RGBA").save(folder / "colour.png")
    picture.save(folder / "a.tif", save_all=True, append_images=[picture] * 2)
    Image.fromarray(grey.astype(np.uint16) * 200).save(folder / "wide.tif")
    write_dicom(folder / "a.dcm", grey.astype(np.uint16))
    write_dicom(folder / "frames.dcm", np.stack([grey] * 3).astype(np.uint16), NumberOfFrames=3)
    nibabel.save(nibabel.Nifti1Image(np.stack([grey] * 3, axis=-1), np.eye(4)), folder / "a.nii.gz")
    nibabel.save(nibabel.Nifti1Image(grey.astype(np.int16), np.eye(4)), folder / "b.nii")
    np.save(folder / "a.npy", np.stack([grey] * 3))
    for kind in ("nrrd", "mha"):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(grey), folder / f"a.{kind}")


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Change, remove, double or cut a few bytes, more often near the beginning."""
    result = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        at = min(int(len(result) * chance.random() ** 3), max(len(result) - 1, 0))
        what = chance.randrange(6)
        if what == 0 and result:
            result[at] ^= 1 << chance.randrange(8)
        elif what == 1 and result:
            result[at] = chance.choice((0, 1, 127, 128, 255))
        elif what == 2:
            del result[at : at + chance.randrange(1, 9)]
        elif what == 3:
            result[at:at] = result[at : at + chance.randrange(1, 40)]
        elif what == 4 and chance.random() < 0.3:
            del result[at:]
        else:
            result[at:at] = chance.randbytes(chance.randrange(1, 5))
    return bytes(result)


class Torture:
    """Counts of what was tried, and of what should not have come."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.chance, self.folder = random.Random(seed), folder
        self.tried: Counter[str] = Counter()
        self.failures: list[str] = []
        self.images = folder / "images"
        self.images.mkdir()
        make_images(self.images)
        TINY.save(folder / "tiny.toml")
        self.run = folder / "run"
        self.train(self.run)

    def train(self, out: Path, *, resume: bool = False) -> subprocess.CompletedProcess[str]:
        """Train the tiny configuration to its end."""
        return subprocess.run(self.command(out, resume), capture_output=True, text=True)

    def command(self, out: Path, resume: bool) -> list[str]:
        """Return the command of a training."""
        begin = ["--config", str(self.folder / "tiny.toml")]
        words = ["train", *(["--resume"] if resume else begin), "--out", str(out)]
        return [sys.executable, "-m", "tcseg", *words]

    def expect(self, what: str, call, *arguments) -> None:
        """Call; note anything but a result, or an error of one line, in time."""
        self.tried[what] += 1
        begun = time.monotonic()
        try:
            call(*arguments)
        except (DataError, RunError) as error:
            if "\n" in str(error).strip():
                self.note(what, f"more than a line: {error}", arguments)
        except Exception as error:
            if type(error) is ValueError and what == "config.toml":
                return  # as documented: it is an option of the command as well
            self.note(what, f"{type(error).__name__}: {error}", arguments)
        if time.monotonic() - begun > SECONDS:
            self.note(what, f"took {time.monotonic() - begun:.0f} s", arguments)

    def note(self, what: str, why: str, arguments: tuple) -> None:
        """Note a failure; keep the file that made it."""
        kept = Path(tempfile.gettempdir()) / f"tcseg-torture-{len(self.failures)}"
        for argument in arguments[:1]:
            if Path(argument).is_file():
                shutil.copy(argument, kept.with_suffix(Path(argument).suffix))
        self.failures.append(f"{what}: {why[:300]} ({kept}.*)")
        print(self.failures[-1], flush=True)

    def image(self) -> None:
        """Damage an image, and read it as image and as mask."""
        source = self.chance.choice(sorted(self.images.iterdir()))
        path = self.folder / f"damaged-{source.name}"
        path.write_bytes(damaged(source.read_bytes(), self.chance))
        self.expect("image", lambda p: list(read_pictures(p)), path)
        self.expect("mask", read_planes, path)
        path.unlink()

    def data_set(self) -> None:
        """Damage one file of a folder, and load the folder."""
        root = self.folder / "data"
        for part in ("images", "masks"):
            (root / part).mkdir(parents=True)
            for name in "abc":
                shutil.copy(self.images / "a.png", root / part / f"{name}.png")
        (root / "classes.txt").write_text("9 lung\n14 heart\n* rest\n")
        victim = self.chance.choice([p for p in sorted(root.rglob("*")) if p.is_file()])
        victim.write_bytes(damaged(victim.read_bytes(), self.chance))
        self.expect("data set", lambda _: load_dataset("folder", root=root, size=32), victim)
        shutil.rmtree(root)

    def run_folder(self) -> None:
        """Damage a file of a run, and read the run."""
        names = ("model.json", "summary.json", "split.json", "config.toml", "metrics.csv")
        name = self.chance.choice((*names, "checkpoint.pt", "model.safetensors"))
        run = self.folder / "broken"
        shutil.copytree(self.run, run)
        (run / name).write_bytes(damaged((run / name).read_bytes(), self.chance))
        folder = RunFolder(run)
        calls = {
            "model.json": lambda _: Model.load(run).build(run),
            "config.toml": lambda p: Config.load(p).validate(),
            "checkpoint.pt": lambda _: folder.load_checkpoint(),
            "model.safetensors": lambda _: folder.load_weights(),
            "split.json": lambda _: folder.split_record(),
        }
        page = lambda _: report([run], self.folder / "page.html", device="cpu")  # noqa: E731
        self.expect(name, calls.get(name, page), run / name)
        shutil.rmtree(run)

    def chain(self) -> None:
        """Stop a training by signals until it is finished; compare it with the one that was not."""
        out = self.folder / "stopped"
        kills = 0
        while not (out / "summary.json").exists():
            resume = (out / "checkpoint.pt").exists()
            if not resume:
                shutil.rmtree(out, ignore_errors=True)
            with subprocess.Popen(
                self.command(out, resume),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ) as process:
                try:
                    patience = self.chance.uniform(2, 12) if kills < MOST_SIGNALS else None
                    said = process.communicate(timeout=patience)[0]
                except subprocess.TimeoutExpired:
                    process.send_signal(self.chance.choice(SIGNALS))
                    kills += 1
                    said = process.communicate()[0]
            self.tried["start of a training"] += 1
            if "Traceback" in said:
                self.note("chain", said[-300:], ())
        self.tried["signal"] += kills
        self.tried["chain of resumes"] += 1
        one, two = (load_file(path / "model.safetensors") for path in (self.run, out))
        if any(not np.array_equal(one[name], two[name]) for name in one):
            self.note("chain", f"other weights after {kills} signals", ())
        if left := [path.name for path in out.iterdir() if path.name.startswith(".")]:
            self.note("chain", f"left over: {left}", ())
        shutil.rmtree(out)


def main() -> int:
    """Torture for some minutes; print the counts."""
    minutes, seed = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else os.getpid()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")  # of the libraries that read, one for almost every file
    end = time.monotonic() + 60 * minutes
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        torture = Torture(seed, Path(folder))
        kinds = (*[torture.image] * 200, *[torture.data_set] * 20, *[torture.run_folder] * 20)
        while time.monotonic() < end:
            for kind in torture.chance.sample(kinds, len(kinds)):
                if time.monotonic() > end:
                    break
                kind()
            torture.chain()
    for what, count in sorted(torture.tried.items()):
        print(f"{what:20} {count:7}")
    print(f"{'failures':20} {len(torture.failures):7}")
    return 1 if torture.failures else 0


if __name__ == "__main__":
    sys.exit(main())
