"""Folders of nnU-Net: imagesTr/, labelsTr/ and dataset.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tcseg.data.layout import Layout
from tcseg.data.legend import Legend
from tcseg.errors import DataError, Problems, counted
from tcseg.io.series import channels_by_case

IMAGES, LABELS, DESCRIPTION = "imagesTr", "labelsTr", "dataset.json"


def is_nnunet(root: Path) -> bool:
    """Whether a folder is laid out as nnU-Net wants it."""
    return (root / IMAGES).is_dir() and (root / DESCRIPTION).is_file()


def nnunet_layout(root: Path, problems: Problems) -> Layout:
    """Find images and masks: CASE_0000.nii.gz and CASE.nii.gz, or another ending.

    Further channels of an image are CASE_0001.nii.gz and so on.

    Raises
    ------
    DataError
        If there are none, or channels are missing.
    """
    ending = str(_description(root).get("file_ending", ".nii.gz"))
    files = sorted((root / IMAGES).glob(f"[!.]*{ending}"))
    cases = channels_by_case({path.name.removesuffix(ending): path for path in files})
    images = {name: channels[0] for name, channels in cases.items()}
    several = {channels[0]: channels for channels in cases.values() if len(channels) > 1}
    layout = Layout(images, channels=several)
    for name, path in images.items():
        if (mask := root / LABELS / f"{name}{ending}").is_file():
            layout.files[path] = mask
    if not layout.files:
        raise DataError(
            f"folder: no image CASE_0000{ending} in {root / IMAGES} has a mask CASE{ending} in "
            f"{root / LABELS}"
        )
    strays = {path.name.removesuffix(ending) for path in (root / LABELS).glob(f"[!.]*{ending}")}
    if strays := strays - set(images):
        problems.add(
            f"folder: {counted(len(strays), 'mask')} in {root / LABELS} without an image: "
            f"{problems.listed(sorted(strays))}"
        )
    layout.naming[f"{DESCRIPTION} of nnU-Net"] = len(layout.files)
    return layout


def nnunet_legend(root: Path) -> Legend:
    """Return the names of values.

    Raises
    ------
    DataError
        If they are not one value each.
    """
    names: dict[int, str] = {}
    for key, entry in _description(root).get("labels", {}).items():
        # Names of values, or, in the first version, values of names.
        value, name = (key, entry) if str(key).isdecimal() else (entry, key)
        if not str(value).isdecimal():
            raise DataError(
                f"{root / DESCRIPTION}: the label {name!r} is {value}; regions of several values "
                "are not read: give each structure one value"
            )
        names[int(value)] = str(name)
    names.pop(0, None)
    return Legend(names)


def _description(root: Path) -> dict[str, Any]:
    path = root / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    if not isinstance(description, dict) or not isinstance(description.get("labels"), dict):
        raise DataError(f"{path}: has no labels; it is not of nnU-Net")
    return description
