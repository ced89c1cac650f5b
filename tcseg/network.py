"""The network f: images in [0, 1] to one probability per class and pixel."""

import importlib

import torch
from torch import Tensor, nn

from tcseg.data import CLASSES


class Segmentation(nn.Module):
    """Standardise each image, apply a backbone that returns logits, and give probabilities.

    Structures overlap, so each class has its own sigmoid.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """Map images (b, 1, H, W) in [0, 1] to probabilities (b, C + 1, H, W)."""
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        deviation = images.std(dim=(1, 2, 3), keepdim=True)
        return torch.sigmoid(self.backbone((images - mean) / (deviation + 1e-3)))


def build_network(name: str = "unet", classes: int = len(CLASSES)) -> Segmentation:
    """Build a network by name.

    Parameters
    ----------
    name : str
        ``"unet"``, MONAI's U-Net, or the dotted path of a callable with the arguments
        ``in_channels`` and ``out_channels`` that returns a module giving logits of the size of
        its input.
    classes : int
        Number of structures; the background is added.

    Raises
    ------
    ValueError
        If the path names nothing that can be called.
    """
    channels = {"in_channels": 1, "out_channels": classes + 1}
    if name == "unet":
        from monai.networks.nets import BasicUNet

        return Segmentation(
            BasicUNet(
                spatial_dims=2,
                features=(16, 16, 32, 64, 128, 16),
                act=("LeakyReLU", {"negative_slope": 0.1, "inplace": True}),
                norm=("instance", {"affine": True}),
                **channels,
            )
        )
    module, _, attribute = name.rpartition(".")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--network {name!r} cannot be imported: {error}") from error
    if not callable(factory):
        raise ValueError(f"--network {name!r} cannot be called, it is {type(factory).__name__}")
    return Segmentation(factory(**channels))
