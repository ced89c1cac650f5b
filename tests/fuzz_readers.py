"""Readers of files under a coverage-guided fuzzer: `make fuzz MINUTES=10 FILES="a.tif coco.json"`.

atheris changes small valid files in such ways that they reach more of our own code. What may come
is a result, or an error of one line, in little time and memory. Each kind of file has a process of
its own, and an equal part of the time. Prints how often each was tried; ends with 1 if anything
else came, and keeps the file that made it.
"""

import json
import os
import re
import sys
import tempfile
import time
import warnings
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent / "tcseg" / "data"))
sys.path.insert(0, str(Path(__file__).parent))
with atheris.instrument_imports(include=["tcseg"]):
    import torture  # takes this folder from the path
    from torture import (
        FORK,
        Config,
        DataError,
        Model,
        RunError,
        RunFolder,
        read_pictures,
        read_planes,
    )

    from tcseg.io.images import Picture
    from tcseg.io.shapes import read_drawing
import numpy as np
import test_shapes
import torch

WORD = r"number_of_executed_units: (\d+)"
PATIENCE = 120  # seconds for one file, on a machine that others keep busy


def read_image(path: Path) -> None:
    """Read an image, and a mask."""
    list(read_pictures(path))
    read_planes(path)


def draw(path: Path) -> None:
    """Read an annotation file, and draw all that is in it."""
    read_drawing.cache_clear()
    if (drawing := read_drawing(path)) is not None:
        for name in list(drawing.shapes):
            size = drawing.sizes.get(name, (64, 64))
            pixels = np.zeros((1, *(min(side or 64, 512) for side in size)), np.float32)
            drawing.masks(name, Picture(name, pixels, None, path))


READERS = {
    "model.json": lambda path: Model.load(path.parent),
    "config.toml": lambda path: Config.load(path).validate(),
    "summary.json": lambda path: RunFolder(path.parent).summary(),
    "split.json": lambda path: RunFolder(path.parent).split_record(),
    "metrics.csv": lambda path: RunFolder(path.parent).metrics.rows(),
    "checkpoint.pt": lambda path: RunFolder(path.parent).load_checkpoint(),
    **dict.fromkeys(("coco.json", "labelme.json", "cvat.xml", "structures.dcm"), draw),
}


def make_seeds(folder: Path) -> None:
    """Write small valid files: those of `torture`, drawings, and a run."""
    torture.make_images(folder)
    (folder / "coco.json").write_text(json.dumps(test_shapes.coco()))
    shape = ("cell", [[10, 5], [20, 5], [20, 15]], "polygon")
    circle = ("b", [[1, 1], [4, 9]], "circle")
    (folder / "labelme.json").write_text(test_shapes.labelme(shape, circle))
    shapes = '<polygon label="a" points="1,5;20,5;9,15"/>'
    shapes += '<mask label="b" rle="1,2" left="0" top="0" width="3" height="1"/>'
    (folder / "cvat.xml").write_text(test_shapes.cvat(shapes))
    structures = {"a": [(1, "CLOSED_PLANAR", test_shapes.box(9.5, 4.5, 29.5, 24.5))]}
    test_shapes.structure_set(folder / "structures.dcm", structures, ["1.2.7.0", "1.2.7.1"], True)
    torture.TINY.save(folder / "config.toml")
    Model("unet", "float32", ("a", "b"), channels=1, size="32x64", spacing=(0.5, 1)).save(folder)
    run = RunFolder(folder)
    run.record_split({"train": ["a"], "test": [1.5, None]}, resume=False)
    run.metrics.append({"step": 1, "loss": 0.9})
    run.save_checkpoint({"step": 1, "network": {"weight": torch.ones(2, 3)}, "best": [0.5, None]})
    run.save_summary({"test": {"miou": 0.9}})


def fuzz(seed: Path, seconds: int, kept: Path) -> None:
    """Try one kind of file for some time; libFuzzer ends the process. What it says is kept."""
    os.dup2(os.open(kept / f"{seed.name}.log", os.O_WRONLY | os.O_CREAT), 2)
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    path, read = folder / seed.name, READERS.get(seed.name, read_image)
    allowed = (DataError, RunError, *((ValueError,) if seed.suffix == ".toml" else ()))

    def once(content: bytes) -> None:
        path.write_bytes(torture.mended(content) if seed.suffix == ".png" else content)
        begun = time.process_time()
        try:
            read(path)
        except allowed as error:
            assert "\n" not in str(error).strip() or seed.suffix == ".toml", error
        assert time.process_time() - begun < torture.SECONDS, "took too long"

    warnings.simplefilter("ignore")
    (folder / "corpus").mkdir()
    (folder / "corpus" / "seed").write_bytes(seed.read_bytes())
    limits = (f"-rss_limit_mb={torture.MEMORY >> 20}", f"-timeout={PATIENCE}", "-max_len=100000")
    options = (f"-max_total_time={seconds}", "-print_final_stats=1", f"-artifact_prefix={kept}/")
    atheris.Setup([sys.argv[0], *limits, *options, str(folder / "corpus")], once)
    atheris.Fuzz()


def main() -> int:
    """Fuzz all kinds for some minutes; print the counts."""
    kept = Path(tempfile.mkdtemp(prefix="tcseg-fuzz-"))
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        make_seeds(Path(folder))
        names = sys.argv[2:] or sorted(path.name for path in Path(folder).iterdir())
        for name in names:
            seconds = round(60 * float(sys.argv[1]) / len(names))
            process = FORK.Process(target=fuzz, args=(Path(folder, name), seconds, kept))
            process.start()
            process.join()
            said = (kept / f"{name}.log").read_text(errors="replace")
            tried = re.search(WORD, said)
            print(f"{name:20} {tried[1] if tried else '?':>9}", flush=True)
            if process.exitcode:
                failures += 1
                print(said[-3000:], flush=True)
    print(f"{'failures':20} {failures:9}{f' (files in {kept})' if failures else ''}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
