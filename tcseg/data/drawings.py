"""Which images annotation files belong to, by the names that they give."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from tcseg.errors import DataError, Problems
from tcseg.io.dicom import text_of
from tcseg.io.images import is_dicom, stem
from tcseg.io.outlines import on_slice
from tcseg.io.shapes import Drawing, read_drawing


@dataclass
class Drawn:
    """Annotated images, with file and name there; all labels; counts for the report."""

    images: dict[Path, tuple[Path, str]] = field(default_factory=dict)
    labels: set[str] = field(default_factory=set)
    naming: Counter[str] = field(default_factory=Counter)

    def add(self, drawing: Drawing, find: Callable[[str], Path | None]) -> None:
        """Add an annotation file; DataError if none of its images is here, or one has shapes."""
        images = {name: image for name in drawing.shapes if (image := find(name)) is not None}
        if not images:
            first = next(iter([*drawing.shapes, *drawing.sizes]), None)
            raise DataError(
                f"folder: {drawing.path} annotates no image that is here; it names {first!r}"
            )
        twins = [name for name, image in images.items() if image in self.images]
        if twins or len(set(images.values())) < len(images):
            raise DataError(
                f"folder: {drawing.path} annotates an image that already has shapes "
                f"({next(iter(twins or images))!r}); merge them into one file, or remove one"
            )
        self.images |= {image: (drawing.path, name) for name, image in images.items()}
        self.labels |= {label for name in images for label, _ in drawing.shapes[name]}
        contours, name = drawing.contours, drawing.path.name
        seen = {n for image in images.values() if contours for n in on_slice(contours, image)}
        empty = len(drawing.sizes.keys() - drawing.shapes.keys())
        counts = {
            drawing.kind + f" {name}" * (drawing.kind != "LabelMe"): len(images),
            f"the images in {name} are not here": len(drawing.shapes) - len(images),
            f"the images in {name} have no shape and count as not annotated": empty,
            f"the contours in {name} lie on no slice that is here": len(contours) - len(seen),
        }
        self.naming += Counter(counts)


def find_drawn(
    root: Path, images: Mapping[str, Path], files: Iterable[Path], problems: Problems
) -> Drawn:
    """Match annotations to images.

    A name is that of the image at this path, seen from the annotation file; else of one whose path
    ends with the name, or is an end of it: ``train/a.jpg`` is ``images/a.png``, but not
    ``images/test/a.png``.

    Parameters
    ----------
    root
        The folder of the data set.
    images
        Its images, by name.
    files
        Files that may be annotation files; others are left out.
    problems
        Where to report what is wrong.
    """
    read_drawing.cache_clear()
    drawn, paths = Drawn(), {path_in(root, image): image for image in images.values()}
    known = {**paths, **images}
    ends: dict[str, list[Path]] = defaultdict(list)
    for name, image in paths.items():
        for end in _ends(name):
            ends[end].append(image)
    instances: dict[str, Path] = {}
    for path in files:
        try:
            drawing = read_drawing(path)
            if drawing is not None and drawing.kind == "RTSTRUCT":
                dicom = () if instances else filter(is_dicom, images.values())
                instances |= {text_of(image, "SOPInstanceUID"): image for image in dicom}
                drawn.add(drawing, instances.get)
            elif drawing is not None:
                drawn.add(drawing, partial(_named, path, root, known, ends))
        except DataError as error:
            problems.add(str(error))
    return drawn


def path_in(folder: Path, path: Path) -> str:
    """Return the path from a folder on, without suffix."""
    return normalize("NFC", path.relative_to(folder).with_name(stem(path)).as_posix())


def _named(
    path: Path, root: Path, known: Mapping[str, Path], ends: Mapping[str, list[Path]], name: str
) -> Path | None:
    whole = PurePosixPath(normalize("NFC", name.replace("\\", "/")))
    plain = whole.with_name(stem(Path(whole.name)) or "_").as_posix() if whole.name else ""
    beside = known.get(f"{path_in(root, path.parent / '_')[:-1]}{plain}")
    found = ends.get(plain) or [known[end] for end in _ends(plain) if end in known][:1]
    if beside is None and len(found) > 1:
        raise DataError(
            f"folder: {path} annotates {name!r}, which may be "
            f"{' or '.join(map(str, found[:3]))}; give the images distinct names"
        )
    return beside or next(iter(found), None)


def _ends(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[n:]) for n in range(len(parts))]
