"""Losses between masks or probabilities, per image: the S and C of Equation 1."""

from collections.abc import Callable

import torch
from torch import Tensor

# A thousandth of a pixel in numerator and denominator: 0 / 0 becomes 1, all else keeps its value.
SMOOTHING = 1e-3
# Closer to 0 and 1 no logarithm is taken.
EPSILON = 1e-7


def soft_iou_loss(target: Tensor, prediction: Tensor) -> Tensor:
    """Return one minus the soft intersection over union, averaged over classes, per image.

    ``1 - 1/C sum_c [ sum_i y p / sum_i (y + (1 - y) p) ]`` over pixels i: the S and C of the
    paper, symmetric in its arguments.

    Parameters
    ----------
    target, prediction : Tensor, shape (b, C, *spatial)
        Masks or probabilities in [0, 1]; one mask per class, background included. Summed in
        float32 at least.

    Returns
    -------
    Tensor, shape (b,)
        Between 0 and 1. A class absent from both sides counts as agreement.

    Raises
    ------
    ValueError
        If the shapes differ or are not (b, C, H, W) or (b, C, D, H, W).

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
    target, prediction = _pair("soft_iou_loss", target, prediction)
    intersection = _sum(target * prediction)
    union = _sum(target) + _sum(prediction) - intersection
    return _missing(intersection, union)


def jaccard_metric_loss(target: Tensor, prediction: Tensor) -> Tensor:
    """Return the Jaccard metric loss: `soft_iou_loss` extended to targets that are not masks.

    ``1 - 1/C sum_c [ (sum_i (y + p) - |y - p|) / (sum_i (y + p) + |y - p|) ]``. It equals
    `soft_iou_loss` where one side is a mask of zeros and ones. Where both are probabilities, that
    one is not least where they agree (it rewards pushing both up), and this one is.

    Parameters and the result are those of `soft_iou_loss`.

    References
    ----------
    Wang, Ning and Blaschko, "Jaccard metric losses: optimizing the Jaccard index with soft
    labels", NeurIPS 2023.

    Examples
    --------
    >>> unsure = torch.full((1, 1, 2, 2), 0.5)
    >>> jaccard_metric_loss(unsure, unsure), soft_iou_loss(unsure, unsure).round(decimals=3)
    (tensor([0.]), tensor([0.6670]))
    """
    target, prediction = _pair("jaccard_metric_loss", target, prediction)
    total, difference = _sum(target + prediction), _sum((target - prediction).abs())
    return _missing((total - difference) / 2, (total + difference) / 2)


def dice_loss(target: Tensor, prediction: Tensor) -> Tensor:
    """Return one minus the soft Dice coefficient, averaged over classes, per image.

    ``1 - 1/C sum_c [ 2 sum_i y p / sum_i (y + p) ]``. Parameters and the result are those of
    `soft_iou_loss`.

    Examples
    --------
    >>> mask = torch.tensor([[[[1.0, 1.0], [1.0, 0.0]]]])
    >>> dice_loss(mask, mask.flip(2)).round(decimals=3)
    tensor([0.3330])
    """
    target, prediction = _pair("dice_loss", target, prediction)
    return _missing(2 * _sum(target * prediction), _sum(target) + _sum(prediction))


def cross_entropy_loss(target: Tensor, prediction: Tensor) -> Tensor:
    """Return the binary cross-entropy of each class, averaged over classes and pixels, per image.

    In nats. Predictions closer to 0 or 1 than 1e-7 count as that far, so a sure error costs 16.
    Not symmetric. Parameters are those of `soft_iou_loss`; the result, of shape (b,), is at least
    0.

    Examples
    --------
    >>> cross_entropy_loss(torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.5))
    tensor([0.6931])
    """
    target, prediction = _pair("cross_entropy_loss", target, prediction)
    p = prediction.clamp(EPSILON, 1 - EPSILON)
    return -(target * p.log() + (1 - target) * (1 - p).log()).mean(dim=_inner(p))


def squared_error_loss(target: Tensor, prediction: Tensor) -> Tensor:
    """Return the mean squared difference over classes and pixels, per image.

    Most pixels are far from any contour, so it is small: as a consistency term it wants a weight
    of the order of 10 or more beside soft IOU. Parameters are those of `soft_iou_loss`; the
    result, of shape (b,), lies between 0 and 1.

    Examples
    --------
    >>> squared_error_loss(torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.5))
    tensor([0.2500])
    """
    target, prediction = _pair("squared_error_loss", target, prediction)
    return (target - prediction).square().mean(dim=_inner(target))


# What `loss` and `consistency_loss` name.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "soft-iou": soft_iou_loss,
    "jaccard-metric": jaccard_metric_loss,
    "dice": dice_loss,
    "cross-entropy": cross_entropy_loss,
    "squared-error": squared_error_loss,
}


def over_batch(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return that loss over the pixels of all images together, as one result of shape (1,).

    Of an image without a structure, every loss that divides by areas asks for no pixel at all,
    and a few stray ones cost as much as a structure that is missed. Over the batch they cost
    what they are beside the structure in other images.

    Examples
    --------
    >>> mask = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    >>> stray = mask.clone()
    >>> stray[1, 0, 0, 0] = 1
    >>> soft_iou_loss(mask, stray).round(decimals=3), over_batch(soft_iou_loss)(mask, stray)
    (tensor([0.0000, 0.9990]), tensor([0.0588]))
    """

    def joined(values: Tensor) -> Tensor:
        return values.transpose(0, 1).flatten(1, 2).unsqueeze(0)

    def pooled(target: Tensor, prediction: Tensor) -> Tensor:
        return loss(joined(target), joined(prediction))

    return pooled


def _pair(function: str, target: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
    if target.shape != prediction.shape or target.dim() not in (4, 5):
        raise ValueError(
            f"{function}: target and prediction must have one shape (b, C, H, W), or (b, C, D, H, "
            "W) of volumes, got "
            f"{tuple(target.shape)} and {tuple(prediction.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(target.dtype, prediction.dtype), torch.float32)
    return target.to(dtype), prediction.to(dtype)


def _inner(values: Tensor, first: int = 1) -> tuple[int, ...]:
    return tuple(range(first, values.dim()))


def _sum(values: Tensor) -> Tensor:
    return values.sum(dim=_inner(values, 2))


def _missing(shared: Tensor, whole: Tensor) -> Tensor:
    return 1 - ((shared + SMOOTHING) / (whole + SMOOTHING)).mean(dim=1)
