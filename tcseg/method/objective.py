"""The method: a Siamese network that learns to predict consistently under transformations.

Equation 1 of Bortsova et al., "Semi-supervised medical image segmentation via learning
consistency under transformations", MICCAI 2019:

    1 / (2 |B_l|) sum_{B_l} [ S(t1_out(y), f(t1_in(x))) + S(t2_out(y), f(t2_in(x))) ]
    + lambda / |B| sum_B C( (t2_out o t1_out^-1)(f(t1_in(x))), f(t2_in(x)) )

with S = C the soft intersection over union, or another loss.

Beyond the paper, the first branch's prediction may be a fixed target, or a teacher's, or a mask;
and boxes of the second view may come from other images, and their targets with them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from tcseg.data import unpack_masks
from tcseg.method.losses import soft_iou_loss
from tcseg.method.mixing import Boxes, mixed_target
from tcseg.method.transforms import SampledTransform, Transform, align_known


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
    exclusive: bool = False,
    ignores: bool = False,
    supervised_loss: Callable[[Tensor, Tensor], Tensor] = soft_iou_loss,
    consistency_loss: Callable[[Tensor, Tensor], Tensor] = soft_iou_loss,
    consistency_weight: float = 1.0,
    second: Transform | None = None,
    stop_gradient: bool = False,
    teacher: nn.Module | None = None,
    hard: bool = False,
    mix: Boxes | None = None,
    patch: Sequence[int] | None = None,
    inside: Tensor | None = None,
) -> Objective:
    """Return Equation 1 for one mini-batch B, its labelled part B_l first.

    Parameters
    ----------
    network : Module
        f: images (b, C, *spatial) in [0, 1] to probabilities (b, classes + 1, *spatial).
    images : Tensor, shape (b, C, *spatial)
        x of B: labelled images, then unlabelled ones.
    labels : Tensor, shape (b_l, B, *spatial)
        y of B_l, uint8, as of `tcseg.data.pack_masks`; moved as they are, a byte or a few a pixel.
    transform : Transform
        The distribution T; t1 and t2 are drawn for each image.
    generator : Generator
        On the device of the images.
    classes : int
        Number of structures, background not counted.
    exclusive : bool
        Whether they exclude each other, and labels are their numbers.
    ignores : bool
        Whether labels may have pixels to be ignored: where there is one, target and prediction are
        0 in S, and in C wherever labels are the target.
    supervised_loss, consistency_loss : callable
        S and C: targets and predictions (b, C, *spatial) to one loss for each image.
    consistency_weight : float
        lambda; at 0 the alignment is left out.
    second : Transform, optional
        The distribution of t2, where it is another one.
    stop_gradient : bool
        Whether the aligned prediction of the first branch is a fixed target for the second.
    teacher : Module, optional
        Another network; its prediction for the first view takes the place of the first branch's
        in the consistency term, as a fixed target.
    hard : bool
        Whether a fixed target is a mask: where it exceeds one half.
    mix : Boxes, optional
        Second views and their targets exchange boxes. The targets of labelled images are then
        their labels, so that S is of the first view alone, and a teacher sees all others alone.
    patch : sequence of int, optional
        Size of the views, where they are of the middle of the images.
    inside : Tensor, uint8 (b, 1, *spatial), optional
        1 where there is something of the images, 0 beyond them. What is read from there, or for C
        from beyond the other view, counts in no loss.

    Returns
    -------
    Objective
        Differentiable by both branches, unless the target is fixed.
    """
    batch, labelled = len(images), len(labels)
    size = images.shape[2:] if patch is None else patch
    t1 = transform.sample(batch, size, generator)
    t2 = (second or transform).sample(batch, size, generator)
    if patch is not None:
        t1, t2 = (t.of_patch(batch, patch, images.device) for t in (t1, t2))
    mixture = None if mix is None else mix.sample(batch, size, generator)
    # Mixed, what is to be found in the second view of labelled images is known.
    unknown = slice(0 if mixture is None else labelled, batch)

    first, other = t1.image(images), t2.image(images)
    other = other if mixture is None else mixture(other)
    taught = first[unknown]  # by a teacher
    if mixture is not None and teacher is not None:
        first = first[:labelled]
    # Two branches with shared weights are one pass over both views.
    y1, y2 = network(torch.cat([first, other])).split([len(first), batch])

    moves = (view.motion(slice(labelled)) for view in (t1, t2))
    target1, target2 = (_labels_under(m, labels, inside, classes, exclusive) for m in moves)
    ignores = ignores or inside is not None

    def error(target: Tensor, answer: Tensor) -> Tensor:
        # Nothing is set where a pixel is to be ignored, not even the background.
        return supervised_loss(target, answer * target.any(1, True) if ignores else answer)

    supervised = error(target1, y1[:labelled])
    if mixture is None:
        supervised = 0.5 * (supervised + error(target2, y2[:labelled]))
    supervised = supervised.mean()

    if consistency_weight == 0:
        return Objective(supervised, supervised, torch.zeros_like(supervised))
    if teacher is not None and len(taught) > 0:
        with torch.no_grad():
            y1 = teacher(taught)
    else:
        y1 = y1[unknown].detach() if stop_gradient else y1[unknown]
    target, known = align_known(t1.motion(unknown), t2.motion(unknown), y1, inside, unknown)
    if hard:
        target = (target > 0.5).to(y2.dtype)
    if mixture is not None:
        target, known = mixed_target(mixture, target2.to(y2.dtype), target, known, ignores)
    y2 = y2 if known is None else y2 * known
    consistency = consistency_loss(target, y2).mean()
    return Objective(supervised + consistency_weight * consistency, supervised, consistency)


def _labels_under(
    motion: SampledTransform, labels: Tensor, inside: Tensor | None, classes: int, exclusive: bool
) -> Tensor:
    """Return the masks of labelled images as a view shows them, 0 where it shows nothing."""
    target = unpack_masks(motion.label(labels), classes, exclusive)
    return target if inside is None else target * motion.label(inside[: len(labels)])
