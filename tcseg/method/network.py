"""The network f: images in [0, 1] to one probability per class and pixel."""

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from tcseg.data import CLASSES
from tcseg.io.sizes import Size, shape_of

# What is added to the logits of the structures: masks start nearly empty. From one half, soft IOU
# divides the gradient of a small structure by the area of the whole image; on JSRT with 5
# labels, a strided U-Net: validation mIOU 0.55, not 0.22, after 100 steps, 0.77, not 0.37, at 500.
STRUCTURE_LOGIT = -3.0
PATCHES = 8  # at once, of those that slide over an image


class Segmentation(nn.Module):
    """Standardise each image, apply a backbone that returns logits, and give probabilities.

    Structures may overlap, so each class has its own sigmoid; or one softmax is over all classes.

    Parameters
    ----------
    backbone : Module
        Standardised images (b, 1, *spatial) to logits (b, C + 1, *spatial).
    precision : torch.dtype
        Of the backbone's convolutions, by autocast; weights and probabilities are float32.
    patch : tuple of int, optional
        What the backbone is shown at once: it slides over images of another size, any.
    head : {"sigmoid", "softmax"}
        What makes probabilities of logits.
    """

    def __init__(
        self,
        backbone: nn.Module,
        precision: torch.dtype = torch.float32,
        patch: tuple[int, ...] | None = None,
        head: str = "sigmoid",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.precision = precision
        self.patch = patch
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Map images (b, 1, *spatial) in [0, 1] to probabilities (b, C + 1, *spatial)."""
        if self.patch is not None and images.shape[2:] != self.patch:
            return cast(Tensor, self._slide(images, self.patch))
        inner = tuple(range(1, images.dim()))
        mean = images.mean(dim=inner, keepdim=True)
        spare = min(1, math.prod(images.shape[1:]) - 1)  # one pixel alone does not deviate
        deviation = images.std(dim=inner, keepdim=True, correction=spare)
        standard = (images - mean) / (deviation + 1e-3)
        reduced = self.precision != torch.float32
        with torch.autocast(images.device.type, self.precision, enabled=reduced):
            logits = self.backbone(standard).float()
        structures, background = logits[:, :-1] + STRUCTURE_LOGIT, logits[:, -1:]
        logits = torch.cat([structures, background], dim=1)
        return torch.sigmoid(logits) if self.head == "sigmoid" else torch.softmax(logits, dim=1)

    def _slide(self, images: Tensor, patch: tuple[int, ...]) -> Any:
        """Return means of patches half a patch apart, weighted by a Gaussian, as nnU-Net does."""
        from monai.inferers.utils import sliding_window_inference

        how: dict[str, Any] = {"overlap": 0.5, "mode": "gaussian", "padding_mode": "replicate"}
        return sliding_window_inference(images, patch, PATCHES, self, **how)


def rivals(network: nn.Module, probabilities: Tensor) -> Tensor:
    """Return probabilities of which the largest is what a pixel belongs to, the background last.

    Those of a softmax are. Of sigmoids each answers a question of its own, and a structure is there
    from one half on: that of the background may long exceed those of structures in training.
    """
    if getattr(network, "head", "sigmoid") == "softmax":
        return probabilities
    structures, background = probabilities[:, :-1], probabilities[:, -1:]
    return torch.cat([structures, torch.full_like(background, 0.5)], dim=1)


def found(network: nn.Module, probabilities: Tensor, disjoint: bool = False) -> Tensor:
    """Return the masks, bool (b, C + 1, *spatial), that a network's answers stand for.

    Where a probability exceeds one half or, of a softmax and of structures that are disjoint, is
    the largest of its `rivals`.
    """
    if getattr(network, "head", "sigmoid") == "sigmoid" and not disjoint:
        return probabilities > 0.5
    # The background comes first: it has what is equal.
    best = rivals(network, probabilities).roll(1, dims=1).argmax(dim=1, keepdim=True)
    masks = torch.zeros_like(probabilities, dtype=torch.bool)
    inside = probabilities.amax(dim=1, keepdim=True) > 0  # beyond an image all are 0
    return masks.scatter_(1, best, inside).roll(-1, dims=1)


def emulates_bfloat16(device: torch.device) -> bool:
    """Whether a device computes bfloat16 by way of float32, many times more slowly."""
    if device.type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    return not bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def at_once(batch_size: int, classes: int, size: Sequence[int]) -> int:
    """Return how many images to answer at once: as asked, but for answers beyond 512 MiB."""
    return max(1, min(batch_size, 2**27 // ((classes + 1) * math.prod(size))))


def network_factory(name: str) -> Callable[..., Any]:
    """Import the callable that a dotted path names; one that names none raises a ValueError."""
    module, _, attribute = name.rpartition(".")
    try:
        factory: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"`network` {name!r} cannot be imported: {error}") from error
    if not callable(factory):
        raise ValueError(f"`network` {name!r} cannot be called, it is {type(factory).__name__}")
    return factory  # type: ignore[no-any-return]


def build_network(
    name: str = "unet",
    classes: int = len(CLASSES),
    precision: str = "float32",
    channels: int = 1,
    patch: Size | None = None,
    head: str = "sigmoid",
    dimensions: int = 2,
) -> Segmentation:
    """Build a network by name.

    Parameters
    ----------
    name : str
        ``"unet"``, MONAI's U-Net, or the dotted path of a callable with the arguments
        ``in_channels`` and ``out_channels`` that returns a module giving logits of the size of
        its input; for volumes it gets ``spatial_dims=3`` as well.
    classes : int
        Number of structures; the background is added.
    precision : {"float32", "bfloat16"}
        Of the convolutions.
    channels : int
        Of the images: 1, or 3 for colour.
    patch : int or str, optional
        What it is shown at once, where images are larger.
    head : {"sigmoid", "softmax"}
        A probability for each class, or of one among all.
    dimensions : int
        Of the images: 2, or 3 for volumes.

    Raises
    ------
    ValueError
        If the path names nothing that makes a module.
    """
    shown = None if patch is None else shape_of(patch, dimensions)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    if name == "unet":
        from monai.networks.nets.basic_unet import BasicUNet, UpCat

        unet = BasicUNet(
            spatial_dims=dimensions,
            in_channels=channels,
            out_channels=classes + 1,
            # Multiples of 16 channels are what bfloat16 convolutions are fast at.
            features=(16, 16, 32, 64, 128, 16),
            norm="batch",
        )
        for part in unet.modules():
            if isinstance(part, UpCat):
                # Sizes are multiples of 16: nothing is odd, and the padding by nothing that this
                # leaves out costs a copy, and fails compiled with channels last (torch 2.13).
                part.is_pad = False
        return Segmentation(unet, dtype, shown, head)
    factory = network_factory(name)
    more = {"spatial_dims": dimensions} if dimensions != 2 else {}
    try:
        backbone = factory(in_channels=channels, out_channels=classes + 1, **more)
    except TypeError as error:
        what = ", and spatial_dims for volumes" if more else ""
        raise ValueError(
            f"`network` {name!r} must take in_channels and out_channels{what}: {error}"
        ) from error
    if not isinstance(backbone, nn.Module):
        raise ValueError(
            f"`network` {name!r} must return a torch.nn.Module, got {type(backbone).__name__}"
        )
    return Segmentation(backbone, patch=shown, head=head)
