"""The options of a training: one table of names, defaults and help, for TOML and command line."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcseg.io.files import write_atomically
from tcseg.io.sizes import ORIGINAL, default_size, pixels, suits
from tcseg.io.windows import WINDOWS, window_limits
from tcseg.method import names
from tcseg.method.variants import METHODS
from tcseg.runs.option import option, toml, within

if TYPE_CHECKING:
    import torch

DATA_SETS = ("phantom", "jsrt", "folder")
PRECISIONS = ("float32", "bfloat16")
# What does not change the result, so that a run may be continued on another machine.
MAY_DIFFER_ON_RESUME = ("device", "root", "cache", "checkpoint_every", "pretrained")
# What pre-training does not depend on: runs that differ in it may share one.
AFTER_PRETRAINING = (
    *("method", "steps", "teacher_decay"),
    *("consistency_weight", "consistency_loss", "consistency_rampup"),
)


_STRENGTH: dict[str, Any] = {"kind": float, "at_least": 0, "below": math.inf}


@dataclass(frozen=True)
class Config:
    """Everything that determines a training, with one field for each option of `tcseg train`.

    The help text of a field stands in its metadata under ``"help"``, its type under ``"kind"``,
    its allowed values under ``"choices"`` or its limits under ``"bounds"``; the command line is
    generated from them.

    Examples
    --------
    >>> config = Config(method="baseline", size=128)
    >>> config.validate()
    """

    data: str = option("phantom", "Data set.", DATA_SETS)
    root: str | None = option(None, "Folder of the data set (jsrt: if not set, $TCSEG_JSRT_ROOT).")
    dimensions: int = option(
        2,
        "2: images, and planes of volumes; 3: volumes.",
        at_least=2,
        below=4,
    )
    size: int | str = option(
        default_size("phantom", 2),
        "Size of images, 256 or 256x512 (height x width), multiples of 16; with --patch, original, "
        "as volumes of a folder have it if not set.",
        kind=pixels,
    )
    spacing: str | None = option(
        None,
        "folder, volumes: size of voxels to resample to in mm, as 1.5 or 5x1.5x1.5 (depth x height "
        "x width), median or original; if not set the median, where files say theirs.",
    )
    patch: int | str | None = option(
        None,
        "Size of patches to train on, of volumes such as 16x96x96; prediction uses a sliding "
        "window.",
        kind=pixels,
    )
    method: str = option("semitc", "Training method.", METHODS)
    labelled: int | None = option(
        None,
        "Number of labelled training images; if not set 5, or all with --data folder.",
        kind=int,
        at_least=1,
    )
    split: int = option(
        0, "Number of the split into training, validation and test images.", at_least=0
    )
    split_file: str | None = option(
        None, "File of splits, as `tcseg data splits` writes it, in place of the built-in ones."
    )
    group: str | None = option(
        None,
        "folder: regular expression that finds the patient in names of images (its first group, "
        "if it has one). If not set, DICOM files name their patients.",
    )
    mask_pattern: str | None = option(
        None,
        "folder: how masks are named, such as {name}_mask, where that is not detected: "
        "{name} stands for the name of the image, {class} for a structure, * for anything.",
    )
    window: str | None = option(
        None,
        "folder: values to be black and white, as centre and width in the units of the files, such "
        f"as -600,1500 for CT, or one of {', '.join(WINDOWS)}.",
    )
    cache: str | None = option(
        None,
        "folder: where to keep decoded images, in files that batches are read from: for data that "
        "exceed memory, and so that they are decoded once for several trainings.",
    )
    validation_images: int | None = option(
        None,
        "Number of validation images that the best network is chosen on; all if not set.",
        kind=int,
        at_least=1,
    )
    seed: int = option(0, "Seed of weights, batches and transforms.", at_least=0, below=2**63)
    pretrain_steps: int = option(1000, "Steps of supervised pre-training.", at_least=0)
    steps: int = option(1000, "Steps of the method itself, after pre-training.", at_least=0)
    batch_size: int = option(
        8,
        "Images per step, over all processes; half are labelled if the method uses others.",
        at_least=2,
    )
    recipe: str = option("strong", "Transforms of the training images.", names.RECIPES)
    displacement_std: float | None = option(
        None,
        "Root mean square displacement of the elastic field in pixels at 512 x 512, in place of "
        "the recipe's.",
        **_STRENGTH,
    )
    pretrain_displacement_std: float | None = option(
        None,
        "The same during pre-training, if it is to differ.",
        **_STRENGTH,
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N; auto takes a GPU if there is one.")
    network: str = option("unet", "unet, or the dotted path of a function or class.")
    head: str = option(
        "auto",
        "sigmoid: a probability for each structure, so that they may overlap; softmax: one "
        "structure per pixel, for label maps; auto takes softmax for label maps of more than 8.",
        ("auto", "sigmoid", "softmax"),
    )
    precision: str = option(
        "float32",
        "Precision of the convolutions; bfloat16 is faster where the processor has it.",
        PRECISIONS,
    )
    compile: bool = option(
        False, "Compile the network (torch.compile); the first step waits for it."
    )
    loss: str = option("soft-iou", "Supervised loss (S).", names.LOSSES)
    consistency_loss: str = option("soft-iou", "Loss of the consistency term (C).", names.LOSSES)
    loss_over: str = option(
        "image",
        "What losses sum their areas over: each image, or the batch (of each process), so that "
        "images without a structure add no noise.",
        ("image", "batch"),
    )
    consistency_weight: float = option(
        1.0, "Weight of the consistency term (lambda).", at_least=0, below=math.inf
    )
    consistency_rampup: int = option(
        0, "Steps over which the weight of the consistency term rises from 0.", at_least=0
    )
    teacher_decay: float = option(
        0.99,
        "Share of its weights that the moving average keeps at each step (methods with a teacher "
        "or semitc-average).",
        at_least=0,
        below=1,
    )
    learning_rate: float = option(
        1.0,
        "Learning rate of Adadelta; it falls to 0 over the steps after pre-training.",
        above=0,
        below=math.inf,
    )
    validate_every: int = option(50, "Steps from one validation to the next.", at_least=1)
    checkpoint_every: int = option(100, "Steps from one checkpoint to the next.", at_least=1)
    pretrained: str | None = option(None, "Run folder whose pre-training is reused.")

    def validate(self) -> None:
        """Check every value; ValueError has a line for each wrong one."""
        problems: list[str] = []

        def expect(holds: bool, name: str, what: str) -> None:
            if not holds:
                problems.append(f"`{name}` must be {what}, got {getattr(self, name)!r}")

        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), field.metadata["choices"]
            if choices:
                expect(value in choices, field.name, "one of " + ", ".join(choices))
            if value is not None:
                expect(*within(field, value))
        dimensions = min(max(self.dimensions, 2), 3)  # of others it is told above
        flat = dimensions == 2
        sides = "a multiple of 16, at least " + (
            "32, or two: 256x512" if flat else "16, or three: 32x96x96"
        )
        own = self.size == ORIGINAL and self.data == "folder"
        fits = own or suits(self.size, dimensions=dimensions)
        expect(fits, "size", f"{sides} (original: of a folder, with `patch`)")
        inside = not own if self.patch is None else suits(self.patch, self.size, dimensions)
        expect(inside, "patch", f"{sides}, within `size`, and given where that is original")
        expect(flat or self.data != "jsrt", "dimensions", "2 for radiographs (jsrt)")
        of_volumes = self.spacing is None or (not flat and self.data == "folder")
        expect(of_volumes, "spacing", "left out, but for volumes of a folder (`dimensions` 3)")
        if self.method in METHODS and METHODS[self.method].pool:
            what = f"even for method {self.method!r} (half labelled, half unlabelled)"
            expect(self.batch_size % 2 == 0, "batch_size", what)
        device = re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device)
        expect(device is not None, "device", "auto, cpu, cuda or cuda:N")
        if self.window is not None:
            try:
                window_limits(self.window)
            except ValueError as error:
                problems.append(str(error))
        *modules, function = self.network.split(".")
        dotted = modules and all(part.isidentifier() for part in (*modules, function))
        what = "'unet' or a dotted path such as 'package.module.function'"
        expect(self.network in names.OWN_NETWORKS or bool(dotted), "network", what)
        if problems:
            raise ValueError("\n".join(problems))

    def differences(
        self, other: Config, ignored: Sequence[str] = MAY_DIFFER_ON_RESUME
    ) -> list[str]:
        """Name the options that differ from `other`, but for those ignored.

        By default those are ignored that do not change the result of a run.

        Returns
        -------
        list of str
            Such as ``"`steps`: 500 here, 1000 there"``; empty if a run may be continued.
        """
        return [
            f"`{field.name}`: {mine!r} here, {theirs!r} there"
            for field in dataclasses.fields(self)
            if field.name not in ignored
            and (mine := getattr(self, field.name)) != (theirs := getattr(other, field.name))
        ]

    @property
    def reading(self) -> dict[str, Any]:
        """How the data set is read: what `tcseg.data.load_dataset` takes of these options."""
        how = ("size", "group", "mask_pattern", "window", "dimensions", "spacing")
        return {name: getattr(self, name) for name in ("root", *how, "cache")}

    @classmethod
    def of(cls, **given: Any) -> Config:
        """Return these options, the others with their defaults of images, or of volumes.

        Examples
        --------
        >>> Config.of().size, Config.of(dimensions=3).patch
        (512, 32)
        """
        if (dimensions := given.get("dimensions", 2)) == 2:
            return cls(**given)
        size = default_size(given.get("data", "phantom"), dimensions)
        patch = None if size == ORIGINAL else 32
        return cls(**{"size": size, "patch": patch, "batch_size": 4, **given})

    @classmethod
    def load(cls, path: str | os.PathLike[str], **given: Any) -> Config:
        """Read a TOML file; options it leaves out have their default.

        Parameters
        ----------
        path
            A file as written by `save`, or a part of one.
        **given
            Options that take the place of those in the file.

        Raises
        ------
        ValueError
            If the file is not TOML, names an unknown option, or gives one the wrong type.
        OSError
            If the file cannot be read.
        """
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # TOMLDecodeError, UnicodeDecodeError
            raise ValueError(f"{path}: not a TOML file: {error}") from error
        try:
            return cls.of(**{**_checked(values), **given})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all options as TOML, in one step, each below its help text."""
        lines = ["# Options of tcseg train; use it again with --config."]
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            line = f"# {name} is not set" if value is None else f"{name} = {toml(value)}"
            lines += ["", f"# {field.metadata['help']}", line]
        write_atomically(path, "\n".join(lines) + "\n")


def resolve_device(name: str) -> torch.device:
    """Turn the device option into a torch device.

    Parameters
    ----------
    name
        ``"auto"`` (a GPU if torch has one, else the CPU), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises
    ------
    ValueError
        If a GPU is asked for that torch does not have.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(
            f"`device` {name}: torch {torch.__version__} sees {count} CUDA devices; "
            "use `device` cpu, or `tcseg doctor` to see what is there"
        )
    return device


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """Check names and types of options read from a file."""
    fields = {field.name: field for field in dataclasses.fields(Config)}
    for name, value in values.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"the nearest valid one is {near[0]!r}" if near else "see tcseg train --help"
            raise ValueError(f"unknown option {name!r}; {hint}")
        expected = fields[name].metadata["kind"]
        # An integer is fine where a number is wanted; True is no integer here.
        allowed = {float: (int, float), pixels: (int, str)}.get(expected, (expected,))
        if type(value) not in allowed:
            words = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}
            if expected is pixels:
                raise ValueError(f"{name} must be such as 256 or '256x512', got {value!r}")
            raise ValueError(f"{name} must be {words[expected]}, got {value!r}")
    return {name: fields[name].metadata["kind"](value) for name, value in values.items()}
