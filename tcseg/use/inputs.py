"""Which files a prediction is of, in folders that may hold anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tcseg.errors import RunError, reason
from tcseg.io.images import FORMATS, is_image, is_text, stem, suffix

__all__ = ["find_inputs"]


def find_inputs(inputs: Sequence[Path], out: Path, problems: list[str]) -> dict[Path, str]:
    """Return the files to segment, and for each the name of what is made from it, without suffix.

    Folders are searched with those in them, save `out`; the names have the folders too. Of files
    that would have one name the first is taken. What is left out is told in `problems`.

    Raises
    ------
    RunError
        If there is nothing to segment, or results would be written among the images.
    """
    names: dict[Path, str] = {}
    for path in inputs:
        if path.is_dir():
            outputs = {
                p: str(p.relative_to(path).with_name(stem(p))) for p in _walk(path, out, problems)
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


def _walk(folder: Path, out: Path, problems: list[str]) -> Iterator[Path]:
    """Yield what looks like an image in a folder and those in it, each real folder once.

    Links may lead in circles, and folders lie deeper than functions can be nested.
    """
    seen = {_identity(out)} if out.is_dir() and not out.samefile(folder) else set()
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        try:
            if not path.is_dir():
                if suffix(path) in FORMATS or is_image(path):
                    yield path
            elif (identity := _identity(path)) not in seen:
                seen.add(identity)
                content = sorted(path.iterdir(), reverse=True)
                waiting += [p for p in content if not p.name.startswith(".")]
        except OSError as error:
            problems.append(f"{path}: cannot be read ({reason(error)})")


def _identity(folder: Path) -> tuple[int, int]:
    """Return what a folder is known by, whatever links lead to it."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def _can_be_opened(path: Path, problems: list[str]) -> bool:
    """Whether a file has a name that can be written down, and an end."""
    if not is_text(str(path)):
        problems.append(f"{path}: its name is not UTF-8; rename it")
        return False
    if not path.is_file():
        problems.append(f"{path}: is no file but a pipe, a device or a link to nothing")
        return False
    return True
