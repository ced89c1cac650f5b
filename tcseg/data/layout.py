"""Which files of a folder are images, which are masks, and which of them belong together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import normalize

from tcseg.data.drawings import Drawn, find_drawn, path_in
from tcseg.data.naming import common_naming
from tcseg.errors import DataError, Problems, counted
from tcseg.io.dicom import SEGMENTATION, segmented_files, text_of
from tcseg.io.files import walk
from tcseg.io.images import NIFTI, NO_TEXT, PLAIN, is_dicom, is_image, is_text
from tcseg.io.shapes import DRAWN, STRUCTURE_SET

OBJECT = "object"
"""The class of files that mark one object each, which have no other name."""

# What tells masks from images where both lie in one folder: a word of the path.
_MASK = re.compile(
    r"(?<![a-z])(masks?|seg|segmentations?|labels?|gt|manual|annotations?|groundtruth)(?![a-z])",
    re.IGNORECASE,
)


@dataclass
class Layout:
    """Images by their names, and their masks.

    Attributes
    ----------
    images : dict of Path
        The files of images, by name.
    files : dict of Path
        By image file: one mask for all classes.
    by_class : dict of dict of list of Path
        By class and image file: the files that mark it, one or one for each object.
    naming : dict of int
        How masks are named, where not as their images, and how many are.
    drawn : Drawn
        Images that files of shapes draw on.
    channels : dict of list of Path
        By image file: all files of its channels, where these are several.
    """

    images: dict[str, Path]
    files: dict[Path, Path] = field(default_factory=dict)
    by_class: dict[str, dict[Path, list[Path]]] = field(default_factory=dict)
    naming: dict[str, int] = field(default_factory=dict)
    drawn: Drawn = field(default_factory=Drawn)
    channels: dict[Path, list[Path]] = field(default_factory=dict)

    def add(self, masks: Iterable[tuple[str | None, str, Path]]) -> None:
        """Take masks of known images: class (None: of all classes), name of the image, file."""
        masks = list(masks)
        several = len({(label, name) for label, name, _ in masks}) < len(masks)
        for label, name, path in masks:
            image = self.images[name]
            if label is None and not several:
                self.files[image] = path
            else:
                self.by_class.setdefault(label or OBJECT, {}).setdefault(image, []).append(path)


def find_layout(root: Path, pattern: str | None, problems: Problems) -> Layout:
    """Find images and masks: in images/ and masks/, or side by side in any folders.

    Parameters
    ----------
    root
        The folder.
    pattern
        How masks are named, without suffix: from masks/ on, or from the root where there is no
        images/. ``{name}`` is the name of the image, ``{class}`` a class, ``*`` anything.
    problems
        Where to collect what is wrong.

    Raises
    ------
    DataError
        If there are no images, no masks, or none belongs to another.
    """
    folder = root / "images"
    if folder.is_dir():
        found = _by_name(folder, filter(is_image, sorted(folder.iterdir())), problems)
        if all(map(_is_annotation, found.values())):
            found = _below(folder, problems)
        images = {name: path for name, path in found.items() if not _is_annotation(path)}
        if not images:
            expected = ", ".join((*PLAIN, ".dcm", *NIFTI))
            raise DataError(f"folder: no images in {folder}; expected {expected}")
        layout = Layout(images)
        masks = {name: path for name, path in found.items() if name not in images}
        drawings = [path for path in sorted(root.iterdir()) if path.suffix.lower() in DRAWN]
        drawings += _files(folder, *DRAWN) + _files(root / "annotations", *DRAWN)
        folder = root / "masks"
        drawings += _files(folder, *DRAWN)
        if folder.is_dir():
            masks |= _below(folder, problems)
        _add_of_several(layout, root, drawings, masks, problems)
        if not (folder.is_dir() or layout.drawn.images or layout.files):
            raise DataError(
                f"folder: no folder {folder}; put masks of some images there, under the names of "
                "their images: NAME.png with a value for each class, or CLASS/NAME.png"
            )
    else:
        layout, masks = _side_by_side(root, pattern, problems)
        folder = root
    if not masks and (layout.drawn.images or layout.files):
        return layout
    if pattern is not None:
        _add_named(layout, pattern, masks, folder, problems)
    elif folder == root:
        _add_side_by_side(layout, masks, folder, problems)
    else:
        _add_folders(layout, masks, folder, problems)
    return layout


# ---- files by name --------------------------------------------------------------------------


def _by_name(folder: Path, paths: Iterable[Path], problems: Problems) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        twin = found.setdefault(path_in(folder, path), path)
        if twin is not path:
            problems.add(
                f"folder: {twin} and {path} have one name, so which belongs to which is not known; "
                "rename or remove one of them"
            )
    return found


def _below(folder: Path, problems: Problems) -> dict[str, Path]:
    """Return the images in a folder and those in it, by their paths from there, without suffix."""
    return _by_name(folder, filter(is_image, _files(folder)), problems)


def _files(folder: Path, *suffixes: str) -> list[Path]:
    """Return the files in a folder and those in it, or those with some suffixes."""
    found = walk(folder, refuse) if folder.is_dir() else ()
    return [path for path in found if not suffixes or path.suffix.lower() in suffixes]


def refuse(path: Path, error: OSError) -> None:
    """Raise a DataError for what cannot be read."""
    raise DataError(f"folder: {path} cannot be read ({error.strerror})") from error


def _is_annotation(path: Path, *kinds: str) -> bool:
    """Whether a DICOM file marks something in others, wherever it lies."""
    known = kinds or (SEGMENTATION, STRUCTURE_SET)
    return is_dicom(path) and text_of(path, "SOPClassUID") in known


def _side_by_side(
    root: Path, pattern: str | None, problems: Problems
) -> tuple[Layout, dict[str, Path]]:
    """Tell masks from images by their names."""
    nothing = (root / "masks").is_dir() or not root.is_dir()
    found = {} if nothing else _below(root, problems)
    if not found:
        raise DataError(
            f"folder: no folder {root / 'images'}; `root` must hold images/ and masks/ (where the "
            "data have moved, give the new `root`)"
        )
    marks = _MASK.search if pattern is None else _regex(pattern, "").fullmatch
    masks = {name: path for name, path in found.items() if marks(name) or _is_annotation(path)}
    images = {name: path for name, path in found.items() if name not in masks}
    layout = Layout(images)
    _add_of_several(layout, root, _files(root, *DRAWN), masks, problems)
    if not (masks or layout.drawn.images or layout.files) or not images:
        what = "as a mask ('mask', 'seg', 'label' ...)" if pattern is None else f"as {pattern!r}"
        raise DataError(
            f"folder: {root} has no folder images, and {'all files' if masks else 'no file'} in it "
            f"named {what}; put images into images/ and masks into masks/, or give `mask_pattern`"
        )
    # One image in each folder has the name of that, as that of a patient.
    folders = [re.sub("/images?$", "", name.rpartition("/")[0]) for name in images]
    if all(folders) and len(set(folders)) == len(images):
        layout.images = dict(zip(folders, images.values(), strict=True))
    return layout, masks


# ---- masks of images ------------------------------------------------------------------------


def _regex(pattern: str, lazy: str) -> re.Pattern[str]:
    if "{name}" not in pattern:
        raise DataError(
            f"`mask_pattern`: {pattern!r} must contain {{name}}, the name of the image, as in "
            "'{name}_mask'"
        )
    first = {"{name}": f"(?P<name>.+{lazy})", "{class}": "(?P<class>[^/]+)"}
    again = {"{name}": "(?P=name)", "{class}": "(?P=class)", "*": "[^/]*"}
    parts = re.split(r"(\{name\}|\{class\}|\*)", pattern)
    return re.compile("".join(first.pop(p, "") or again.get(p) or re.escape(p) for p in parts))


def _add_named(
    layout: Layout, pattern: str, masks: Mapping[str, Path], folder: Path, problems: Problems
) -> None:
    """Add masks that are named as a pattern says."""
    found, strays = [], []
    # Where the name of an image could end at several places, it ends where one has it.
    regexes = [_regex(pattern, lazy) for lazy in ("", "?")]
    images = {name: name for name in layout.images}
    # One that has the name of its folder has that of its path as well.
    if all(path.is_relative_to(folder) for path in layout.images.values()):
        images |= {path_in(folder, path): name for name, path in layout.images.items()}
    for name, path in masks.items():
        matches = [match for regex in regexes if (match := regex.fullmatch(name))]
        known = [match for match in matches if match["name"] in images]
        if known:
            label = known[0].groupdict().get("class")
            found.append((label, images[known[0]["name"]], path))
        else:
            strays.append(name)
    layout.add(found)
    layout.naming[pattern] = len(found)
    _check(folder, layout, strays, problems)


def _add_of_several(
    layout: Layout, root: Path, files: list[Path], masks: dict[str, Path], problems: Problems
) -> None:
    """Add files that say of which images they are: shapes, and DICOM files from among the masks."""
    of_dicom = {name: path for name, path in masks.items() if is_dicom(path)}
    sets = [name for name, path in of_dicom.items() if _is_annotation(path, STRUCTURE_SET)]
    files = files + [masks.pop(name) for name in sets]
    layout.drawn = find_drawn(root, layout.images, files, problems)
    layout.naming |= layout.drawn.naming
    sources = {name: segmented_files(path) for name, path in of_dicom.items()}
    several = {name: files for name, files in sources.items() if len(files) > 1}
    if several:
        dicom = filter(is_dicom, layout.images.values())
        instances = {text_of(path, "SOPInstanceUID"): path for path in dicom}
        for name, instance in several.items():
            images = [instances[file] for file in instance if file in instances]
            if any(image in layout.files for image in images):
                problems.add(
                    f"folder: {masks[name]} marks images that another DICOM segmentation marks as "
                    "well; join their segments in one, or remove one"
                )
            layout.files |= dict.fromkeys(images, masks.pop(name))
            layout.naming[f"DICOM segmentation {name} of a series"] = len(images)


def _add_side_by_side(
    layout: Layout, masks: Mapping[str, Path], folder: Path, problems: Problems
) -> None:
    """Add masks that lie beside their images, a file each or a folder of objects."""
    for key in (str, lambda name: name.rpartition("/")[0]):
        keys = {name: key(name) for name in masks}
        names = _matched(dict.fromkeys(keys.values()), layout)
        if len(names) == len(set(keys.values())):
            layout.add((None, names[keys[name]], path) for name, path in masks.items())
            return
    _check(folder, layout, list(masks), problems)


def _add_folders(
    layout: Layout, masks: Mapping[str, Path], folder: Path, problems: Problems
) -> None:
    """Add masks of masks/: files, folders for classes, or folders of objects for images."""
    parts: dict[str | None, dict[str, list[Path]]] = {}
    # Of images, as those of patients; masks may have the same ones.
    folders = {name.partition("/")[0] for name in layout.images if "/" in name}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        name = normalize("NFC", path.name)
        if path.is_dir() and name[0] != "." and name not in folders | set(layout.images):
            if not is_text(name):
                raise DataError(f"folder: {str(path)!r}: {NO_TEXT}")
            parts[name] = {}
    # Folders whose files are named as images are classes, even if they are named so themselves.
    by_class = any(part in layout.images for name in masks for part in name.split("/")[1:2])
    for name, path in masks.items():
        first, _, rest = name.partition("/")
        label, key = (first, rest) if rest else (None, first)
        if first in folders:
            label, key = None, name
        elif rest and first in layout.images and not by_class:
            label, key = OBJECT, first
        elif not folders:
            key = key.partition("/")[0]  # a folder of objects, within that of the class
        parts.setdefault(label, {}).setdefault(key, []).append(path)
    strays: list[str] = []
    for label, files in parts.items():
        names = _matched(files, layout)
        strays += [key for key in files if key not in names]
        if not files:
            problems.add(
                f"folder: no masks in {folder / str(label)}; remove it, or put masks there"
            )
        layout.add((label, name, path) for key, name in names.items() for path in files[key])
    _check(folder, layout, sorted(set(strays)), problems)


def _check(folder: Path, layout: Layout, strays: Sequence[str], problems: Problems) -> None:
    """Tell which masks belong to no image."""
    if not (layout.files or layout.by_class or layout.drawn.images):
        images = folder.with_name("images") if folder.name == "masks" else folder
        example = (
            f"; the first mask is {strays[0]!r}, the first image {next(iter(layout.images))!r}"
            if strays
            else ""
        )
        raise DataError(
            f"folder: no mask in {folder} has the name of an image in {images}{example}; name each "
            "mask as its image, or say with `mask_pattern` how they are named, as '{name}_mask'"
        )
    if strays:
        problems.add(
            f"folder: {counted(len(strays), 'mask')} without an image of their name: "
            f"{problems.listed(strays)}; name each mask as its image, or remove it"
        )


def _matched(masks: Iterable[str], layout: Layout) -> dict[str, str]:
    """Return the images of masks that are named as they are, but for what is common to them.

    Raises
    ------
    DataError
        If several images fit.
    """
    same = {mask: mask for mask in masks if mask in layout.images}
    others = [mask for mask in masks if mask not in same]
    fitting = common_naming(others, list(layout.images)) if others else {}
    # The names of images without a change are more than parts of both.
    whole = {found: way for found, way in fitting.items() if not way[2] + way[3]}
    fitting = whole or ({} if same else fitting)
    if len(fitting) > 1:
        firsts = " or ".join(sorted(found[0] for found in fitting))
        raise DataError(
            f"folder: {others[0]!r} may be the mask of {firsts}; say with `mask_pattern` how masks "
            "are named, as '{name}_mask'"
        )
    for found, (before, after, *of_images) in fitting.items():
        naming = f"{before}{{name}}{after}"
        naming += " for images {}{{name}}{}".format(*of_images) if any(of_images) else ""
        layout.naming[naming] = layout.naming.get(naming, 0) + len(found)
        pairs = zip(others, found, strict=True)
        same |= {mask: image for mask, image in pairs if image not in same}
    return same
