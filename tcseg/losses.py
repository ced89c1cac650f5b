"""The loss of the paper: soft intersection over union, per image and class."""

import torch
from torch import Tensor


def soft_iou_loss(target: Tensor, prediction: Tensor) -> Tensor:
    """Return one minus the soft intersection over union, averaged over classes, per image.

    ``1 - 1/C sum_c [ sum_i y p / sum_i (y + (1 - y) p) ]`` over pixels i: the S and C of the
    paper, symmetric in its arguments.

    Parameters
    ----------
    target, prediction : Tensor, shape (b, C, H, W)
        Masks or probabilities in [0, 1]; one mask per class, background included. Summed in
        float32 at least.

    Returns
    -------
    Tensor, shape (b,)
        Between 0 and 1. A class absent from both sides counts as agreement.

    References
    ----------
    Bortsova et al., "Semi-supervised medical image segmentation via learning consistency under
    transformations", MICCAI 2019, section 3.

    Examples
    --------
    >>> mask = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    >>> soft_iou_loss(mask, mask)
    tensor([0.])
    """
    if target.shape != prediction.shape or target.dim() != 4:
        raise ValueError(
            "soft_iou_loss: target and prediction must have one shape (b, C, H, W), got "
            f"{tuple(target.shape)} and {tuple(prediction.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(target.dtype, prediction.dtype), torch.float32)
    target, prediction = target.to(dtype), prediction.to(dtype)
    intersection = (target * prediction).sum(dim=(2, 3))
    union = target.sum(dim=(2, 3)) + prediction.sum(dim=(2, 3)) - intersection
    # A thousandth of a pixel on both sides: 0 / 0 becomes 1, anything else keeps its value.
    return 1 - ((intersection + 1e-3) / (union + 1e-3)).mean(dim=1)
