"""Image files that belong together: slices of one series, files of one patient."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from tcseg.errors import DataError, Problems, counted
from tcseg.io.dicom import even_step, limits_of, read_dataset, read_frames
from tcseg.io.grids import orientation
from tcseg.io.images import Picture, is_dicom, read_pictures, read_spacing, stem
from tcseg.io.windows import Limits, window_limits

TAGS = (
    *("PatientID", "SeriesInstanceUID", "InstanceNumber", "NumberOfFrames", "Rows", "Columns"),
    *("ImagePositionPatient", "ImageOrientationPatient"),
)


@dataclass(frozen=True)
class _Slice:
    """What a DICOM file says of where it belongs; slices of one stack lie on each other."""

    path: Path
    patient: str
    series: str
    stack: tuple[Any, ...] | None
    place: tuple[float, int]


class Collection:
    """Image files, with what they have in common.

    Parameters
    ----------
    names
        The files, by name.
    group
        Regular expression for names: its first group, or else all that it matches, is the patient.
        Without it, patients are those that DICOM files name, or their series; of names with
        folders, the folder.
    problems
        Where to collect what is wrong.
    window
        Values to be black and white, as centre and width, or a name; see `window_limits`.
    scale
        One of ``"volume"``, or ``"image"`` as in earlier versions, which took each file for itself.
    channels
        By file: all files that hold the channels of its image, it first, where these are several.

    Attributes
    ----------
    files : list of Path
        The files, slices of a series one after the other as they lie in the patient.
    grouped_by : str or None
        What joins several files into a group; None where nothing does.
    """

    def __init__(
        self,
        names: Mapping[str, Path],
        group: str | None = None,
        problems: Problems | None = None,
        *,
        window: str | None = None,
        scale: str = "volume",
        channels: Mapping[Path, Sequence[Path]] | None = None,
    ) -> None:
        self._channels = channels or {}
        self._names = {path: name for name, path in names.items()}
        paths = list(self._names)
        self._window, self._scale = None if window is None else window_limits(window), scale
        dicom = filter(is_dicom, paths) if scale == "volume" else ()
        slices = {path: _slice(path) for path in dicom}
        known = [found for found in slices.values() if found is not None]
        self._volumes: dict[Path, str] = {}
        self._members: dict[str, list[Path]] = {}
        self._slice_spacings: dict[Path, float | None] = {}
        self._limits: dict[tuple[Path, ...], Limits | None] = {}
        self._stacks: dict[Path, list[Path]] = {}
        for members in _stacks(known):
            self._add_stack(members)
        ordered = (file for path in paths for file in self._stacks.get(path, [path]))
        self.files = list(dict.fromkeys(ordered))
        self.grouped_by: str | None = None
        self._groups: dict[Path, str] = {}
        if group is not None:
            self._group_by_name(group, Problems() if problems is None else problems)
        elif known:
            self._group_by_header(known)
        elif any("/" in name for name in names):
            self._groups = {path: name.rpartition("/")[0] or name for name, path in names.items()}
            self.grouped_by = "folder"

    def read(self, path: Path) -> Iterator[Picture]:
        """Read the images of one file, as `read_pictures`, with group and volume."""
        name = self._names[path]
        limits = self._window or self._limits_of_stack(tuple(self._stacks.get(path, ())))
        for picture in self._joined(path, limits):
            if self._window and (len(picture.pixels) not in (1, 3) or path in self._channels):
                raise DataError(f"{path}: `window` is for images of one channel; leave it out")
            yield replace(
                picture,
                name=name + picture.name.removeprefix(stem(path)),
                group=self._groups.get(path, name),
                volume=self._volumes.get(path) if picture.plane is None else name,
                slice_spacing=self._slice_spacings.get(path, picture.slice_spacing),
            )

    def spacing(self, path: Path) -> tuple[tuple[float, float] | None, float | None]:
        """Return `read_spacing` of a file, the distance of planes as of its series."""
        pixel, between = read_spacing(path)
        return pixel, self._slice_spacings.get(path, between)

    def _joined(self, path: Path, limits: Limits | None) -> Iterator[Picture]:
        """Read the images of one file, with the channels that other files have of them."""
        files = self._channels.get(path, [path])
        alike = len(files) == 1 or len(set(map(orientation, files))) == 1
        for planes in zip_longest(*(read_pictures(file, limits, self._scale) for file in files)):
            shapes = {part and (part.pixels.shape[1:], part.plane) for part in planes}
            if len(shapes) > 1 or not alike:
                raise DataError(
                    f"{path}: its channels, up to {files[-1].name}, differ in size, planes or "
                    "orientation; save them alike"
                )
            pixels = [part.pixels for part in planes]
            yield replace(
                planes[0],
                pixels=np.concatenate(pixels) if len(pixels) > 1 else pixels[0],
                bits=max(part.bits for part in planes),
            )

    def series(self, path: Path) -> list[Path]:
        """Return the slices of the volume that a file is one of, in their order; or it alone."""
        return self._members.get(self._volumes.get(path, ""), [path])

    def identity(self, path: Path) -> str:
        """Return 16 hexadecimal digits that change with the series of a file, or with its name."""
        about: list[Any] = [(self._names[part], str(part)) for part in self.series(path)]
        for part in self._stacks.get(path, self._channels.get(path, [path])):
            with contextlib.suppress(OSError):  # gone meanwhile, as reading it will tell
                about += [part.name, part.stat().st_size, part.stat().st_mtime_ns]
        return hashlib.sha256(repr(about).encode()).hexdigest()[:16]

    def _add_stack(self, members: Sequence[_Slice]) -> None:
        """Note which slices make a volume: of those at one place, each belongs to another one."""
        seen: Counter[float] = Counter()
        volumes: dict[int, list[Path]] = defaultdict(list)
        for found in members:
            volumes[seen[found.place[0]]].append(found.path)
            seen[found.place[0]] += 1
        ordered = [path for part in volumes.values() for path in part]
        for path in ordered:
            self._stacks[path] = ordered
        places = {found.path: found.place[0] for found in members}
        taken = set(self._volumes.values())
        for part in volumes.values():
            names = (members[0].series + (f"#{n}" if n else "") for n in range(len(taken) + 1))
            name = next(name for name in names if name not in taken)
            taken.add(name)
            if len(part) > 1:
                self._volumes |= dict.fromkeys(part, name)
                self._members[name] = part
                step = even_step(np.diff([places[path] for path in part]))
                self._slice_spacings |= dict.fromkeys(part, step)

    def _limits_of_stack(self, files: tuple[Path, ...]) -> Limits | None:
        """Return what is black and white in a series, None of no files; like one of its files."""
        if files not in self._limits:
            frames = []
            for path in files:
                with contextlib.suppress(Exception):  # told on reading that file
                    frames.append(read_frames(path))
            grey = [part for part in frames if all(values.ndim == 2 for values in part.values)]
            self._limits[files] = limits_of(grey) if grey else None
        return self._limits[files]

    def _group_by_name(self, expression: str, problems: Problems) -> None:
        try:
            matches = {path: re.search(expression, self._names[path]) for path in self.files}
        except re.error as error:
            raise DataError(
                f"`group` {expression!r} is not a regular expression ({error})"
            ) from error
        strays = [self._names[path] for path, match in matches.items() if match is None]
        if strays:
            problems.add(
                f"folder: `group` {expression!r} matches no part of {len(strays)} names "
                f"({problems.listed(strays)}); it must tell the patient of every image"
            )
        self._groups = {
            path: (match[1] if match.re.groups else match[0]) or self._names[path]
            for path, match in matches.items()
            if match is not None
        }
        self.grouped_by = f"the names of files ({expression})"

    def _group_by_header(self, slices: Sequence[_Slice]) -> None:
        # One number for all is none: the files were made anonymous so.
        by_patient = len({found.patient for found in slices}) > 1
        names = {
            f.path: (by_patient and f.patient) or f.series or self._names[f.path] for f in slices
        }
        sizes = Counter(names.values())
        # A file alone keeps its name, and so its place in the splits.
        self._groups = {path: name for path, name in names.items() if sizes[name] > 1}
        if self._groups:
            joined = [found for found in slices if found.path in self._groups]
            patients = {by_patient and bool(found.patient) for found in joined}
            kinds = {True: "PatientID", False: "SeriesInstanceUID"}
            self.grouped_by = " or ".join(kinds[kind] for kind in sorted(patients, reverse=True))


def channels_by_case(names: Mapping[str, Path]) -> dict[str, list[Path]]:
    """Join files by case, named CASE_0000, CASE_0001 and so on as nnU-Net names channels.

    A DataError is raised if a file is named otherwise, or cases have not the same channels.

    Examples
    --------
    >>> {case: len(files) for case, files in channels_by_case({"a_0000": Path("a.png")}).items()}
    {'a': 1}
    """
    cases: dict[str, list[Path]] = {}
    for name, path in sorted(names.items()):
        files = cases.setdefault(name[:-5], [])
        files.append(path)
        if name[-5:] != f"_{len(files) - 1:04d}":
            raise DataError(f"{path}: expected CASE_0000, CASE_0001 ..., a number for each channel")
    first = next(iter(cases.values()), [])
    for files in cases.values():
        if len(files) != len(first):
            raise DataError(
                f"{files[0]} has {counted(len(files), 'channel')}, {first[0].name} has "
                f"{len(first)}; all images must have the same (_0000, _0001 ...)"
            )
    return cases


def _stacks(slices: Sequence[_Slice]) -> Iterator[list[_Slice]]:
    """Sort the slices that say where they lie, by what they lie on each other with."""
    stacks: dict[tuple[Any, ...], list[_Slice]] = defaultdict(list)
    for found in slices:
        if found.stack is not None:
            stacks[found.stack].append(found)
    for members in stacks.values():
        if len(members) > 1:
            yield sorted(members, key=lambda found: (*found.place, found.path))


def _slice(path: Path) -> _Slice | None:
    """Read the header of a DICOM file; None if that cannot be done, which reading it will tell."""
    try:
        header = read_dataset(path, stop_before_pixels=True, specific_tags=list(TAGS))
        patient, series = (str(header.get(name) or "").strip() for name in TAGS[:2])
        number = int(header.get("InstanceNumber") or 0)
        position = np.array(header.get("ImagePositionPatient") or (), float)
        axes = np.array(header.get("ImageOrientationPatient") or (), float)
        place, stack = 0.0, None
        if series and int(header.get("NumberOfFrames") or 1) == 1 and len(position) == 3:
            place = round(float(np.cross(axes[:3], axes[3:]) @ position), 3)
            stack = (series, *axes.round(3).tolist(), header.get("Rows"), header.get("Columns"))
        return _Slice(path, patient, series, stack, (place, number))
    except Exception:  # headers of damaged files raise almost anything
        return None
