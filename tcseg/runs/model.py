"""What one has to know of a network beside its weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, convert
from torch import Tensor, nn

from tcseg.data import Dataset
from tcseg.errors import RunError, reason
from tcseg.io.files import read_json, write_json
from tcseg.io.label_maps import LARGEST_LABEL
from tcseg.io.sizes import ORIGINAL, shape_of
from tcseg.io.windows import window_limits
from tcseg.method.names import OWN_NETWORKS
from tcseg.method.network import Segmentation, build_network
from tcseg.runs.folder import RunFolder

if TYPE_CHECKING:
    from tcseg.runs.config import Config

PrintableName = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]+$", max_length=1000)]
Side = Annotated[int, Meta(ge=16, le=16384, multiple_of=16)]
Sides = Annotated[str, Meta(pattern="^([0-9]{2,5}(x[0-9]{2,5}){1,2}|original)$")]
Positive = Annotated[float, Meta(gt=0, lt=1e9)]


@dataclass(frozen=True)
class Model:
    """What one has to know of a network beside its weights; ``model.json`` of a run.

    Attributes
    ----------
    network, precision
        As in the options of the training.
    classes
        Names of the structures, in the order of the outputs, background not counted.
    channels
        Of the images: 1, 3 for colour, or any number.
    files
        How many files an image is in, named as nnU-Net's.
    dimensions
        Of the images: 2, or 3 for volumes.
    size
        Height and width that images are fitted into: 256, ``"256x512"``, or ``"original"``, their
        own, of any shape. Of volumes, depth is first: ``"32x64x64"``.
    values
        Number that stands for each structure in the masks of the training data, where these held
        one for each pixel, and those found do so too; None where structures may overlap.
    spacing
        Height and width in mm of a pixel of that size, or depth, height and width of a voxel: the
        median over the training data; None where it is not known.
    voxel
        Depth, height and width in mm of the voxels that volumes are resampled to or, in a frame of
        some size, the proportions of voxels there; None if they stay as they are.
    scale
        One grey scale of each ``"volume"``, or of each ``"image"`` as in earlier versions.
    bits
        How many a grey level has, between image and network.
    patch
        Size that the network was trained at, and slides over images in; None if that is `size`.
    head
        What makes probabilities of the outputs: ``"softmax"`` where structures exclude each other,
        or ``"sigmoid"``.
    window
        Values to be black and white, as in the options of the training.
    """

    network: Annotated[str, Meta(pattern=r"^[a-zA-Z_]\w*(\.\w+)*$")]
    precision: Annotated[str, Meta(pattern="^(float32|bfloat16)$")]
    classes: Annotated[tuple[PrintableName, ...], Meta(min_length=1)]
    channels: Annotated[int, Meta(ge=1, le=1024)]
    size: Side | Sides
    values: tuple[Annotated[int, Meta(ge=1, le=LARGEST_LABEL)], ...] | None = None
    spacing: Annotated[tuple[Positive, ...], Meta(min_length=2, max_length=3)] | None = None
    scale: Annotated[str, Meta(pattern="^(volume|image)$")] = "image"
    bits: Annotated[int, Meta(ge=8, le=16, multiple_of=8)] = 8
    patch: Side | Sides | None = None
    window: str | None = None
    files: Annotated[int, Meta(ge=1, le=1024)] = 1
    head: Annotated[str, Meta(pattern="^(sigmoid|softmax)$")] = "sigmoid"
    dimensions: Annotated[int, Meta(ge=2, le=3)] = 2
    voxel: Annotated[tuple[Positive, ...], Meta(min_length=3, max_length=3)] | None = None

    @property
    def seen(self) -> int | str:
        """Height and width of what the network is shown at once."""
        return self.size if self.patch is None else self.patch

    @property
    def resampled_to(self) -> str:
        """What volumes are resampled to, as the option `spacing` has it."""
        return ORIGINAL if self.voxel is None else "x".join(map(str, self.voxel))

    @classmethod
    def of(cls, config: Config, dataset: Dataset) -> Model:
        """Describe the network of a training."""
        return cls(
            network=config.network,
            precision=config.precision,
            classes=dataset.classes,
            channels=dataset.images.shape[1],
            size=config.size,
            patch=config.patch,
            values=dataset.values if max(dataset.values or (0,)) <= LARGEST_LABEL else None,
            spacing=dataset.pixel,
            voxel=dataset.resampled,
            dimensions=config.dimensions,
            scale=dataset.scale,
            bits=dataset.bits,
            window=config.window,
            files=dataset.files,
            head=head_of(config, dataset),
        )

    def save(self, run: Path) -> None:
        """Write ``model.json``."""
        write_json(run / "model.json", asdict(self))

    @classmethod
    def load(cls, run: Path) -> Model:
        """Read ``model.json``.

        Raises
        ------
        RunError
            If there is none, or it cannot be used.
        """
        path = run / "model.json"
        try:
            model = read_json(path, cls)
            for numbers in (model.classes, model.values or model.classes):
                if not len(model.classes) == len(numbers) == len({*numbers}):
                    raise ValueError("classes and values must be of one number, no two alike")
            for size in {model.seen} | ({model.size} - {ORIGINAL}):
                convert(shape_of(size, model.dimensions), tuple[Side, ...])
            if len(model.spacing or model.dimensions * " ") != model.dimensions:
                raise ValueError(f"spacing must be {model.dimensions} numbers")
            if model.window is not None:
                window_limits(model.window)
            return model
        except FileNotFoundError as error:
            RunFolder(run).config()  # a folder that is not a run says so
            raise RunError(
                f"{run} has no model.json: it is not finished, or from an older version; continue "
                "it with `resume`, or train it again"
            ) from error
        except ValueError as error:
            raise RunError(f"{path}: broken ({reason(error)}); train the run again") from error

    def build(self, run: Path, trusted: str | None = None) -> nn.Module:
        """Return the network of a run, its weights not loaded.

        Raises
        ------
        RunError
            If it is code that does not come with the package, and not `trusted`, or lies in the
            folder of the run.
        """
        if self.network not in OWN_NETWORKS:
            self._check_trusted(run, trusted)
        return self.new_network()

    def new_network(self) -> Segmentation:
        """Return such a network, its weights at random."""
        return build_network(
            self.network,
            len(self.classes),
            self.precision,
            self.channels,
            self.patch,
            self.head,
            self.dimensions,
        )

    def _check_trusted(self, run: Path, trusted: str | None) -> None:
        if self.network != trusted:
            given = "" if trusted is None else f", not {trusted!r}"
            raise RunError(
                f"{run}: its network is {self.network!r}{given}, code that would be run to load "
                f"it; if you trust that code, say so: `network` {self.network}"
            )
        # Found, not imported.
        spec = importlib.util.find_spec(self.network.partition(".")[0])
        places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
        if any(place and Path(place).resolve().is_relative_to(run.resolve()) for place in places):
            raise RunError(
                f"{run}: its network {self.network!r} is code in the folder of the run itself, "
                "which is never run; install it elsewhere"
            )


def head_of(config: Config, dataset: Dataset) -> str:
    """Return the head of the network: softmax, if not chosen, where more than 8 classes exclude.

    A ValueError is raised where softmax is chosen and masks may overlap.
    """
    if config.head == "softmax" and not dataset.exclusive:
        raise ValueError(
            "`head` softmax is for structures that exclude each other, in masks of one value for "
            f"each; those of data {dataset.name!r} may overlap: choose sigmoid"
        )
    if config.head == "auto":
        return "softmax" if dataset.exclusive and len(dataset.classes) > 8 else "sigmoid"
    return config.head


def load_weights(
    network: nn.Module, weights: Mapping[str, Tensor], run: Path | str, name: str
) -> None:
    """Put weights into a network; a RunError names the run if they do not fit."""
    for key, value in weights.items():
        if not value.isfinite().all():
            raise RunError(f"{run}: its weights hold numbers that are not finite ({key})")
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        mine = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        theirs = {key: tuple(value.shape) for key, value in weights.items()}
        key = next(key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key))
        raise RunError(
            f"{run}: its weights do not fit network {name!r} ({key}: {theirs.get(key, 'missing')}, "
            f"the network has {mine.get(key, 'none')}); was its code changed, or has the data "
            "another number of channels or structures?"
        ) from error
