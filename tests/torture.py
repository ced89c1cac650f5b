"""Damaged files, hostile folders, odd arguments, killed trainings: `make torture MINUTES=10`.

Small valid files of every kind that tcseg reads are damaged at random and read again: what may come
is a result or an error of one line, in little time and memory. Folders of links, pipes and odd
names are segmented: no good image may be missing. Operators get the arguments of
`tests/tcwarp/test_fuzz.py`, from other seeds. In turn a tiny training is stopped by signals at
random and resumed until it is finished: its weights must be those of one that was never stopped,
bit for bit. Each part runs in processes of its own: one that crashes or hangs is a failure, and the
others go on. Prints how many were tried; ends with 1 if anything else came.
"""

import csv
import faulthandler
import multiprocessing
import multiprocessing.connection
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
import zlib
from collections import Counter
from pathlib import Path

import hypothesis
import nibabel
import numpy as np
import SimpleITK
import torch
from PIL import Image
from rich.console import Console
from safetensors.numpy import load_file

sys.path.pop(0)  # this folder, whose folders tcseg and tcwarp would hide the packages
sys.path.insert(0, str(Path(__file__).parent / "helpers"))
sys.path.insert(0, str(Path(__file__).parent / "tcwarp"))
import test_fuzz
from made_up import write_dicom
from tiny import TINY, TINY_VOLUMES

from tcseg.data import load_dataset
from tcseg.errors import DataError, RunError
from tcseg.io.images import read_pictures
from tcseg.io.planes import read_planes
from tcseg.runs.config import Config
from tcseg.runs.folder import RunFolder
from tcseg.runs.model import Model
from tcseg.use.predict import predict
from tcseg.use.report import report
from tcseg.use.segmenter import Segmenter

# Parts, and how often each is tried in one process.
PARTS = {"image": 1000, "data_set": 50, "run_folder": 30, "tree": 20, "operators": 1, "chain": 1}
PATIENCE = 900  # seconds for one such process, on a machine that others keep busy
EXAMPLES = 200  # of arguments, for each test of operators
SECONDS = 20  # of the processor, for one file
MEMORY = 4 * 2**30
MOST_SIGNALS = 12  # of one chain: a slow machine comes to its end as well
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
NAMES = (
    *(b"a.png", b"b.dcm", b"a.b.c.png", b"=cmd.png", b"-rf.png", b"~.png", b" .png", b"*?[a].png"),
    *(b"bad\xff.png", b"new\nline.png", b"clear\x1b[2J.png", b"%s{0}`.png", b"'\".png"),
    *(
        "\u202e\u00fc\U0001f40d.png".encode(),
        b"x" * 235 + b".png",
        b".hidden.png",
        b"none",
        b"d",
        b"e",
    ),
)
LINKS = (b".", b"..", b"missing", b"a.png", b"d", b"../d", b"/dev/zero", b"/dev/stdin")
FORK = multiprocessing.get_context("fork")


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


def mended(content: bytes) -> bytes:
    """Put the checksums of a PNG file right, without which no more of it is looked at."""
    result, at = bytearray(content), 8
    while at + 12 <= len(result):
        end = at + 8 + int.from_bytes(result[at : at + 4])
        result[end : end + 4] = zlib.crc32(result[at + 4 : end]).to_bytes(4)
        at = end + 4
    return bytes(result)


class Hanging(BaseException):
    """Raised in what takes too long; a reader that catches any Exception does not catch it."""


def stop(*_: object) -> None:
    """Stop what takes too long."""
    raise Hanging


class Bright(torch.nn.Module):
    """Finds what is bright."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return grey levels as probabilities."""
        grey = images.mean(dim=1, keepdim=True)
        return torch.cat([grey, 1 - grey], dim=1)


class Torture:
    """Counts of what was tried, and of what should not have come."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.chance, self.folder = random.Random(seed), folder
        self.tried: Counter[str] = Counter()
        self.failures: list[str] = []
        self.images = folder / "images"
        self.images.mkdir()
        make_images(self.images)
        self.runs = [folder / "run", folder / "run of volumes"]  # never stopped
        self.run = self.runs[0]
        for run, config in zip(self.runs, (TINY, TINY_VOLUMES), strict=True):
            config.save(run.with_suffix(".toml"))
            subprocess.run(self.command(run, run), capture_output=True, check=True)

    def command(self, like: Path, out: Path, resume: bool = False) -> list[str]:
        """Return the command of a training like one of the runs."""
        begin = ["--config", str(like.with_suffix(".toml"))]
        words = ["train", *(["--resume"] if resume else begin), "--out", str(out)]
        return [sys.executable, "-m", "tcseg", *words]

    def expect(self, what: str, call, *arguments) -> None:
        """Call; note anything but a result, or an error of one line, in time."""
        self.tried[what] += 1
        begun = time.process_time()  # of this process: others may keep the machine busy
        # What hangs in Python is stopped; what hangs in C ends the process, which says where.
        signal.setitimer(signal.ITIMER_PROF, SECONDS + 1)
        resource.setrlimit(resource.RLIMIT_CPU, (int(begun) + 3 * SECONDS, -1))
        try:
            call(*arguments)
        except Hanging:
            pass  # as is told below
        except (DataError, RunError) as error:
            if "\n" in str(error).strip():
                self.note(what, f"more than a line: {error}", arguments)
        except Exception as error:
            if type(error) is ValueError and what == "config.toml":
                return  # as documented: it is an option of the command as well
            self.note(what, f"{type(error).__name__}: {error}", arguments)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if (took := time.process_time() - begun) > SECONDS:
            self.note(what, f"took {took:.0f} s", arguments)

    def note(self, what: str, why: str, arguments: tuple) -> None:
        """Note a failure; keep the file that made it."""
        kept = Path(tempfile.gettempdir()) / f"tcseg-torture-{os.getpid()}-{len(self.failures)}"
        for argument in arguments[:1]:
            if Path(argument).is_file():
                shutil.copy(argument, kept.with_suffix(Path(argument).suffix))
        self.failures.append(f"{what}: {why[:300]} ({kept}.*)")
        print(self.failures[-1], flush=True)

    def image(self) -> None:
        """Damage an image, and read it as image and as mask."""
        source = self.chance.choice(sorted(self.images.iterdir()))
        path = self.folder / f"damaged-{source.name}"
        content = damaged(source.read_bytes(), self.chance)
        if source.suffix == ".png" and self.chance.random() < 0.8:
            content = mended(content)
        path.write_bytes(content)
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

    def tree(self) -> None:
        """Segment a folder of odd names, links, pipes and deep folders; then again."""
        root, out = self.folder / "tree", self.folder / "found"
        root.mkdir()
        good = self.grow(root)
        model = Model("unet", "float32", ("bright",), channels=1, size=32)
        segmenter = Segmenter(Bright(), model, torch.device("cpu"))
        tables = []

        def segment(_: Path) -> None:
            quiet = Console(quiet=True)
            problems = predict(segmenter, [root], out, consistency=False, console=quiet)
            with open(out / "measurements.csv", newline="") as file:
                tables.append([row["file"] for row in csv.DictReader(file)])
            done = [os.path.realpath(name) for name in tables[-1]]
            told = "\n".join(problems)
            missing = [p for p in good if os.path.realpath(p) not in done and p.name not in told]
            if missing or tables[0] != tables[-1] or len({*tables[-1]}) < len(tables[-1]):
                raise AssertionError(f"missing {missing}, tables {tables}")

        for what in ("folder", "folder again"):
            self.expect(what, segment, root)
        # Python's own removal calls itself for each folder in a folder.
        subprocess.run(["rm", "-rf", root, out], check=True)

    def grow(self, root: Path) -> list[Path]:
        """Fill a folder with anything; return the images that must be found."""
        chance, places, good = self.chance, [root], []
        valid = (self.images / "a.png").read_bytes()
        for _ in range(chance.randrange(1, 40)):
            path = Path(
                os.fsdecode(os.fsencode(chance.choice(places)) + b"/" + chance.choice(NAMES))
            )
            what = chance.choice(("image", "image", "damaged", "folder", "deep", "link", "pipe"))
            if os.path.lexists(path):
                continue
            if what == "image":
                path.write_bytes(valid)
                below = path.relative_to(root)
                seen = not any(part.startswith(".") for part in below.parts)
                if seen and path.suffix == ".png" and str(path).isprintable():
                    good.append(path)
            elif what == "damaged":
                path.write_bytes(damaged(valid, chance))
            elif what == "pipe":
                os.mkfifo(path)
            elif what == "link":
                os.symlink(chance.choice(LINKS), os.fsencode(path))
            else:
                for _ in range(1 if what == "folder" else chance.randrange(2, 60)):
                    path.mkdir()
                    places.append(path)
                    path /= "d"
        return good

    def operators(self) -> None:
        """Call operators with odd arguments, from a seed of their own."""
        tests = [f for name, f in vars(test_fuzz).items() if hasattr(f, "hypothesis")]
        settings = hypothesis.settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        for test in tests:
            test = hypothesis.seed(self.chance.getrandbits(32))(settings(test))
            self.expect("operators", test)
            self.tried["operators"] += EXAMPLES - 1

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
        like, out = self.chance.choice(self.runs), self.folder / "stopped"
        kills = 0
        while not (out / "summary.json").exists():
            resume = (out / "checkpoint.pt").exists()
            if not resume:
                shutil.rmtree(out, ignore_errors=True)
            with subprocess.Popen(
                self.command(like, out, resume),
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
        one, two = (load_file(path / "model.safetensors") for path in (like, out))
        if any(not np.array_equal(one[name], two[name]) for name in one):
            self.note("chain", f"other weights after {kills} signals", ())
        if left := [path.name for path in out.iterdir() if path.name.startswith(".")]:
            self.note("chain", f"left over: {left}", ())
        shutil.rmtree(out)

    def apart(self, part: str, seed: int, end: float) -> None:
        """Try a part in a process of its own; that it ends otherwise is a failure."""
        ours, theirs = FORK.Pipe(duplex=False)
        process = FORK.Process(target=self.work, args=(theirs, part, seed, end))
        process.start()
        theirs.close()
        try:
            if not ours.poll(PATIENCE):
                raise EOFError
            tried, failures = ours.recv()
            self.tried += tried
            self.failures += failures
        except EOFError:
            process.kill()
            process.join()
            why = f"process of seed {seed} lost or hung, exit status {process.exitcode}"
            self.note(part, why, tuple(sorted(self.folder.rglob("damaged-*"))))
        process.join()
        ours.close()

    def work(
        self, result: multiprocessing.connection.Connection, part: str, seed: int, end: float
    ) -> None:
        """Try a part; send counts and failures."""
        torch.set_num_threads(1)
        faulthandler.dump_traceback_later(PATIENCE - 10)  # where it waits
        faulthandler.register(signal.SIGXCPU, chain=True)
        signal.signal(signal.SIGPROF, stop)
        self.chance, self.tried, self.failures = random.Random(seed), Counter(), []
        with tempfile.TemporaryDirectory(dir=self.folder, ignore_cleanup_errors=True) as folder:
            self.folder = Path(folder)
            for number in range(PARTS[part]):
                if not number or time.monotonic() < end:  # each once, however short the time
                    getattr(self, part)()
        result.send((self.tried, self.failures))


def main() -> int:
    """Torture for some minutes; print the counts."""
    minutes, seed = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else os.getpid()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")  # of the libraries that read, one for almost every file
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        torture = Torture(seed, Path(folder))
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            for part in PARTS:
                torture.apart(part, torture.chance.getrandbits(32), end)
    for what, count in sorted(torture.tried.items()):
        print(f"{what:20} {count:7}")
    print(f"{'failures':20} {len(torture.failures):7}")
    return 1 if torture.failures else 0


if __name__ == "__main__":
    sys.exit(main())
