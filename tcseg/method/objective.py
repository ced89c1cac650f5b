"""The method: a Siamese network that learns to predict consistently under transformations.

Equation 1 of Bortsova et al., "Semi-supervised medical image segmentation via learning
consistency under transformations", MICCAI 2019:

    1 / (2 |B_l|) sum_{B_l} [ S(t1_out(y), f(t1_in(x))) + S(t2_out(y), f(t2_in(x))) ]
    + lambda / |B| sum_B C( (t2_out o t1_out^-1)(f(t1_in(x))), f(t2_in(x)) )

with S = C the soft intersection over union, or another loss.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from tcseg.data import unpack_masks
from tcseg.method.losses import soft_iou_loss
from tcseg.method.transforms import Transform, align


@dataclass(frozen=True)
class Objective:
    """The terms of Equation 1, each a scalar; `consistency` before its weight lambda."""

    total: Tensor
    supervised: Tensor
    consistency: Tensor


def siamese_objective(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    transform: Transform,
    generator: Generator,
    *,
    classes: int,
    supervised_loss: Callable[[Tensor, Tensor], Tensor] = soft_iou_loss,
    consistency_loss: Callable[[Tensor, Tensor], Tensor] = soft_iou_loss,
    consistency_weight: float = 1.0,
    stop_gradient: bool = False,
    teacher: nn.Module | None = None,
) -> Objective:
    """Return Equation 1 for one mini-batch B, its labelled part B_l first.

    Parameters
    ----------
    network : Module
        f: images (b, 1, H, W) in [0, 1] to probabilities (b, classes + 1, H, W).
    images : Tensor, shape (b, 1, H, W)
        x of B: labelled images, then unlabelled ones.
    labels : Tensor, shape (b_l, 1, H, W)
        y of B_l, uint8, bit c set where class c is; moved as they are, one byte a pixel.
    transform : Transform
        The distribution T; t1 and t2 are drawn for each image.
    generator : Generator
        On the device of the images.
    classes : int
        Number of structures, background not counted.
    supervised_loss, consistency_loss : callable
        S and C: targets and predictions (b, C, H, W) to one loss for each image.
    consistency_weight : float
        lambda; at 0 the alignment is left out.
    stop_gradient : bool
        Whether the aligned prediction of the first branch is a fixed target for the second.
    teacher : Module, optional
        Another network; its prediction for the first view takes the place of the first branch's
        in the consistency term, as a fixed target.

    Returns
    -------
    Objective
        Differentiable by both branches, unless the target is fixed.
    """
    batch, labelled = len(images), len(labels)
    size = (images.shape[-2], images.shape[-1])
    t1 = transform.sample(batch, size, generator)
    t2 = transform.sample(batch, size, generator)

    # Two branches with shared weights are one pass over both views.
    views = torch.cat([t1.image(images), t2.image(images)])
    y1, y2 = network(views).chunk(2)

    whole = torch.nn.functional.pad(labels, (0, 0, 0, 0, 0, 0, 0, batch - labelled))
    target1, target2 = (unpack_masks(t.label(whole)[:labelled, 0], classes) for t in (t1, t2))
    supervised = (
        0.5
        * (supervised_loss(target1, y1[:labelled]) + supervised_loss(target2, y2[:labelled])).mean()
    )

    if consistency_weight == 0:
        return Objective(supervised, supervised, torch.zeros_like(supervised))
    if teacher is not None:
        with torch.no_grad():
            y1 = teacher(views[:batch])
    elif stop_gradient:
        y1 = y1.detach()
    consistency = consistency_loss(align(t1, t2, y1), y2).mean()
    return Objective(supervised + consistency_weight * consistency, supervised, consistency)
