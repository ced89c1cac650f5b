"""Which files a prediction is of, in folders that may hold anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tcseg.errors import RunError, reason
from tcseg.io.files import walk
from tcseg.io.images import FORMATS, is_image, is_text, stem, suffix


def find_inputs(inputs: Sequence[Path], out: Path, problems: list[str]) -> dict[Path, str]:
    """Return the files to segment, and for each the name of what is made from it, without suffix.

    Folders are searched with those in them, save `out`; the names have the folders too. Of files
    that would have one name the first is taken. What is left out is told in `problems`.

    Raises
    ------
    RunError
        If there is nothing to segment, or results would be written among the images.
    """

    def unreadable(path: Path, error: OSError) -> None:
        problems.append(f"{path}: cannot be read ({reason(error)})")

    names: dict[Path, str] = {}
    for path in inputs:
        if path.is_dir():
            found = walk(path, unreadable, without=out)
            outputs = {
                p: str(p.relative_to(path).with_name(stem(p)))
                for p in found
                if suffix(p) in FORMATS or is_image(p)
            }
            if not outputs and not problems:
                raise RunError(f"{path}: no images in it, nor in the folders in it")
        elif path.exists():
            outputs = {path: stem(path)}
        else:
            raise RunError(f"{path}: no such file or folder")
        names |= {p: name for p, name in outputs.items() if _can_be_opened(p, problems)}
    if out.resolve() in {path.resolve().parent for path in names}:
        raise RunError(f"{out} holds the images themselves; choose another `out`")
    first: dict[str, Path] = {}
    for path, name in list(names.items()):
        twin = first.setdefault(name, path)
        if twin is not path:
            problems.append(
                f"{path}: would be written to the files of {twin}; segment it into another `out`"
            )
            del names[path]
    return names


def _can_be_opened(path: Path, problems: list[str]) -> bool:
    """Whether a file has a name that can be written down, and an end."""
    if not is_text(str(path)):
        problems.append(f"{path}: its name is not UTF-8; rename it")
        return False
    if not path.is_file():
        problems.append(f"{path}: is no file but a pipe, a device or a link to nothing")
        return False
    return True
