"""Equation 1 against a literal reading of it: one image, one class, one pixel at a time."""

import numpy as np
import pytest
import torch
from torch import nn

import tcwarp
from tcseg.data import pack_masks
from tcseg.method.losses import soft_iou_loss
from tcseg.method.mixing import Mixture
from tcseg.method.objective import Objective, siamese_objective
from tcseg.method.transforms import Elastic, SampledTransform, align

reference = tcwarp.reference
SIZE, CLASSES, BATCH, LABELLED = (14, 18), 2, 5, 3


class Replay:
    """A distribution T that gives the draws it was told, in turn."""

    def __init__(self, *draws):
        self.draws, self.asked = list(draws), []

    def sample(self, batch, size, generator):
        self.asked.append((batch, size))
        return self.draws.pop(0)


class Network(nn.Module):
    """A small f that mixes neighbouring pixels, in double; it notes what it sees and answers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(1, 4, 3, padding=1, dtype=torch.float64)
        self.last = nn.Conv2d(4, CLASSES + 1, 3, padding=1, dtype=torch.float64)

    def forward(self, images):
        self.seen = images
        self.answer = torch.sigmoid(4 * self.last(torch.tanh(4 * self.first(images))))
        if self.answer.requires_grad:
            self.answer.retain_grad()
        return self.answer


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def fields(seed, identities=()):
    """Displacements (BATCH, 2, H, W) in double that move by some pixels without folding."""
    drawn = tcwarp.random_displacement(
        BATCH, SIZE, sigma=6.0, displacement_std=1.5, dtype=torch.float64, generator=seeded(seed)
    )
    drawn[list(identities)] = 0
    return drawn


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def images():
    noise = torch.rand(BATCH, 1, *SIZE, generator=seeded(1), dtype=torch.float64)
    smooth = tcwarp.gaussian_smooth(noise, 1.5)
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


@pytest.fixture
def masks():
    """Overlapping structures, bool (LABELLED, CLASSES, H, W)."""
    noise = torch.rand(LABELLED, CLASSES, *SIZE, generator=seeded(2))
    return tcwarp.gaussian_smooth(noise, 2.0) > 0.5


# The members of the batch: both transforms, the first or the second the identity, both.
T1, T2 = fields(3, identities=[1, 4]), fields(4, identities=[2, 4])


def objective(network, images, masks, t1=T1, t2=T2, **options):
    transform = Replay(SampledTransform(t1), SampledTransform(t2))
    labels = pack_masks(masks)
    return siamese_objective(
        network, images, labels, transform, seeded(), classes=CLASSES, **options
    )


# Equation 1, literally.


def similarity_loss(y, p):
    """S = C: one minus the soft IOU, averaged over classes, for one image (C, H, W)."""
    ratios = []
    for y_c, p_c in zip(y, p, strict=True):
        pairs = list(zip(y_c.flat, p_c.flat, strict=True))
        ratios.append(sum(a * b for a, b in pairs) / sum(a + (1 - a) * b for a, b in pairs))
    return 1 - sum(ratios) / len(ratios)


def equation_1(network, images, masks, consistency_weight):
    """Return (total, supervised sum, consistency sum), an image at a time, in NumPy."""

    def f(image):
        with torch.no_grad():
            return network(torch.from_numpy(image)).numpy()

    def transformed(image, field, mode):
        return reference.warp(image, field, mode=mode, padding_mode="border")

    supervised = consistency = 0.0
    for n in range(BATCH):
        x, t1, t2 = (a[n : n + 1].numpy() for a in (images, T1, T2))
        answer1, answer2 = f(transformed(x, t1, "cubic")), f(transformed(x, t2, "cubic"))
        if n < LABELLED:
            y = masks[n : n + 1].double().numpy()
            for field, answer in ((t1, answer1), (t2, answer2)):
                target = transformed(y, field, "nearest")
                background = 1 - target.max(axis=1, keepdims=True)
                target = np.concatenate([target, background], axis=1)
                supervised += similarity_loss(target[0], answer[0]) / (2 * LABELLED)
        t2_after_inverse_of_t1, _ = reference.align(t1, t2)
        aligned = transformed(answer1, t2_after_inverse_of_t1, "nearest")
        consistency += similarity_loss(aligned[0], answer2[0]) / BATCH
    return supervised + consistency_weight * consistency, supervised, consistency


@pytest.mark.parametrize("consistency_weight", [1.0, 0.3])
def test_it_is_equation_1(network, images, masks, consistency_weight):
    terms = objective(network, images, masks, consistency_weight=consistency_weight)
    expected = equation_1(network, images, masks, consistency_weight)
    for actual, value in zip(
        (terms.total, terms.supervised, terms.consistency), expected, strict=True
    ):
        # The loss settles 0 / 0 by a thousandth of a pixel; unions here are about 100 pixels.
        assert actual.item() == pytest.approx(value, abs=5e-5)
    assert expected[2] > 0.01


def test_its_gradient_is_that_of_equation_1(network, images, masks):
    objective(network, images, masks).total.backward()
    step = 1e-4
    for weight, index in ((network.first.weight, (1, 0, 0, 2)), (network.last.bias, (1,))):
        gradient = weight.grad[index].item()
        totals = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[index] += sign * step
                totals.append(equation_1(network, images, masks, 1.0)[0])
                weight[index] -= sign * step
        assert gradient == pytest.approx((totals[0] - totals[1]) / (2 * step), abs=2e-5)
        assert abs(gradient) > 1e-3


def test_lambda_weighs_the_consistency_term(network, images, masks):
    one, third = (objective(network, images, masks, consistency_weight=w) for w in (1.0, 1 / 3))
    assert torch.equal(one.supervised, third.supervised)
    assert torch.equal(one.consistency, third.consistency)
    assert one.total.item() == pytest.approx((one.supervised + one.consistency).item())
    assert third.total.item() == pytest.approx((one.supervised + one.consistency / 3).item())


def test_lambda_is_1_if_not_given(network, images, masks):
    given = objective(network, images, masks, consistency_weight=1.0)
    assert torch.equal(objective(network, images, masks).total, given.total)


def test_lambda_0_is_supervised_learning(network, images, masks):
    terms = objective(network, images, masks, consistency_weight=0.0)
    assert torch.equal(terms.total, terms.supervised)
    assert terms.consistency.item() == 0
    terms.total.backward()
    gradients = network.answer.grad.chunk(2)
    assert all(gradient[:LABELLED].any() for gradient in gradients)
    assert not any(gradient[LABELLED:].any() for gradient in gradients)
    assert torch.equal(terms.supervised, objective(network, images, masks).supervised)


# Two branches.


def test_both_views_of_the_batch_go_through_one_network(network, images, masks):
    transform = Replay(SampledTransform(T1), SampledTransform(T2))
    labels = pack_masks(masks)
    siamese_objective(network, images, labels, transform, seeded(), classes=CLASSES)
    assert transform.asked == [(BATCH, SIZE)] * 2
    assert torch.equal(
        network.seen, torch.cat([SampledTransform(t).image(images) for t in (T1, T2)])
    )


def test_both_branches_receive_gradient_through_the_alignment(network, images, masks):
    objective(network, images, masks).consistency.backward()
    first, second = network.answer.grad.chunk(2)
    for n in range(BATCH):
        assert first[n].any(), f"branch 1 of image {n} has no gradient"
        assert second[n].any(), f"branch 2 of image {n} has no gradient"
    # Some predictions of branch 1 are shown nowhere in branch 2 and copied by none: no gradient.
    moved = (T1 - T2).flatten(1).any(dim=1)
    assert (first[moved] == 0).all(dim=1).any()
    assert not (second == 0).all(dim=1).any()


def test_swapping_the_branches_hardly_changes_the_loss(network, images, masks):
    # Not at all but for what the two views do not share and the rounding of one alignment.
    one, other = objective(network, images, masks), objective(network, images, masks, T2, T1)
    assert torch.allclose(one.supervised, other.supervised, rtol=0, atol=1e-12)
    assert one.consistency.item() == pytest.approx(other.consistency.item(), abs=0.03)


@pytest.mark.parametrize("still", [None, torch.zeros_like(T1)], ids=["none", "zero"])
def test_two_equal_views_are_consistent(images, masks, still):
    class Confident(nn.Module):
        def forward(self, images):
            return torch.cat([images > level for level in (0.3, 0.5, 0.7)], dim=1).double()

    terms = objective(Confident(), images, masks, still, still)
    assert terms.consistency.item() == pytest.approx(0, abs=1e-12)
    assert terms.supervised.item() > 0.1
    # Where a view is moved, predictions of interpolated images differ.
    assert objective(Confident(), images, masks, still, T2).consistency.item() > 0.01


def test_two_equal_views_of_an_unsure_network_are_not(network, images, masks):
    # Soft IOU of a probability with itself is below 1: the term asks for confidence, too.
    assert objective(network, images, masks, None, None).consistency.item() > 0.05


# Labelled and unlabelled.


def test_unlabelled_images_do_not_affect_the_supervised_term(network, images, masks):
    before = objective(network, images, masks)
    changed = images.clone()
    changed[LABELLED:] = 1 - changed[LABELLED:]
    after = objective(network, changed, masks)
    assert torch.equal(before.supervised, after.supervised)
    assert not torch.equal(before.consistency, after.consistency)


def test_labelled_images_take_part_in_both_terms(network, images, masks):
    before = objective(network, images, masks)
    changed = images.clone()
    changed[:LABELLED] = 1 - changed[:LABELLED]
    after = objective(network, changed, masks)
    assert not torch.equal(before.supervised, after.supervised)
    assert not torch.equal(before.consistency, after.consistency)


def test_labels_do_not_affect_the_consistency_term(network, images, masks):
    before, after = objective(network, images, masks), objective(network, images, ~masks)
    assert not torch.equal(before.supervised, after.supervised)
    assert torch.equal(before.consistency, after.consistency)


def test_all_may_be_labelled(network, images):
    masks = tcwarp.gaussian_smooth(torch.rand(BATCH, CLASSES, *SIZE), 2.0) > 0.5
    terms = objective(network, images, masks)
    alone = [
        objective(network, images[i : i + 1], masks[i : i + 1], T1[i : i + 1], T2[i : i + 1])
        for i in range(BATCH)
    ]
    for name in ("total", "supervised", "consistency"):
        mean = sum(getattr(one, name).item() for one in alone) / BATCH
        assert getattr(terms, name).item() == pytest.approx(mean)


def test_each_image_has_its_own_transforms(network, images, masks):
    transform = Elastic(displacement_std=40.0, sigma=100.0, identity_probability=0.0)
    same = images[:1].float().expand(BATCH, -1, -1, -1)
    labels = pack_masks(masks)
    siamese_objective(network.float(), same, labels, transform, seeded(), classes=CLASSES)
    views = network.seen.flatten(1)
    assert len(views.unique(dim=0)) == 2 * BATCH


def test_one_state_of_the_generator_gives_one_objective(network, images, masks):
    transform = Elastic(displacement_std=40.0, sigma=100.0)
    labels = pack_masks(masks)

    def total(seed) -> Objective:
        return siamese_objective(
            network.float(), images.float(), labels, transform, seeded(seed), classes=CLASSES
        ).total

    assert torch.equal(total(1), total(1))
    assert not torch.equal(total(1), total(2))


# Other targets and losses.


def test_a_stopped_target_gives_the_same_loss_and_gradient_to_one_branch(network, images, masks):
    both = objective(network, images, masks)
    stopped = objective(network, images, masks, stop_gradient=True)
    assert torch.equal(both.total, stopped.total)
    stopped.consistency.backward()
    first, second = network.answer.grad.chunk(2)
    assert not first.any()
    assert second.flatten(1).any(dim=1).all()


def test_a_teacher_gives_the_target(network, images, masks):
    teacher = Network().double().eval()
    with torch.no_grad():
        teacher.last.bias += 0.5
    taught = objective(network, images, masks, teacher=teacher)
    taught.consistency.backward()
    first, second = network.answer.grad.chunk(2)
    assert not first.any()
    assert second.flatten(1).any(dim=1).all()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert torch.equal(teacher.seen, SampledTransform(T1).image(images))
    itself = objective(network, images, masks, teacher=network)
    assert torch.equal(itself.consistency, objective(network, images, masks).consistency)
    assert not torch.equal(taught.consistency, itself.consistency)
    assert torch.equal(taught.supervised, itself.supervised)


def test_losses_take_their_places(network, images, masks):
    def zero(target, prediction):
        return 0 * soft_iou_loss(target, prediction)

    def double(target, prediction):
        return 2 * soft_iou_loss(target, prediction)

    usual = objective(network, images, masks)
    changed = objective(network, images, masks, supervised_loss=double, consistency_loss=zero)
    assert changed.supervised.item() == pytest.approx(2 * usual.supervised.item())
    assert changed.consistency.item() == 0


def test_the_second_view_may_have_a_distribution_of_its_own(network, images, masks):
    labels = pack_masks(masks)
    first, second = Replay(SampledTransform(T1)), Replay(SampledTransform(T2, lambda x: 1 - x))
    siamese_objective(network, images, labels, first, seeded(), classes=CLASSES, second=second)
    expected = [SampledTransform(T1).image(images), 1 - SampledTransform(T2).image(images)]
    assert torch.equal(network.seen, torch.cat(expected))


def test_a_hard_target_is_the_mask_of_the_teacher(network, images, masks):
    class Masks(nn.Module):
        def forward(self, images):
            return (network(images) > 0.5).double()

    soft, hard = (
        objective(network, images, masks, teacher=teacher, hard=hard)
        for teacher, hard in ((Masks(), False), (network, True))
    )
    assert torch.equal(soft.consistency, hard.consistency)
    usual = objective(network, images, masks, teacher=network)
    assert not torch.equal(hard.consistency, usual.consistency)


class Exchange:
    """The mixture that it was told."""

    def __init__(self, box, partner):
        self.mixture = Mixture(box, torch.tensor(partner))

    def sample(self, batch, size, generator):
        return self.mixture


class Levels(nn.Module):
    """Marks by brightness, pixel by pixel: what it says of a box is what the box holds."""

    def forward(self, images):
        self.seen = images
        return torch.cat([torch.sigmoid(20 * (images - at)) for at in (0.4, 0.6, 0.5)], dim=1)


@pytest.mark.parametrize("teacher", [None, Levels()], ids=["branch", "teacher"])
def test_second_views_exchange_boxes_and_their_targets(images, masks, teacher):
    """Pixel by pixel: partner, box, label of labelled images, aligned prediction of others."""
    network, partner = Levels(), [3, 0, 4, 2, 1]
    box = torch.zeros(BATCH, 1, *SIZE, dtype=torch.bool)
    for n in range(BATCH):
        box[n, 0, n : n + 6, 2 * n : 2 * n + 5] = True
    options = {"teacher": teacher, "mix": Exchange(box, partner)}
    terms = objective(network, images, masks, **options)

    view1, view2 = (SampledTransform(t).image(images) for t in (T1, T2))
    targets = []
    for n in range(BATCH):
        if n < LABELLED:
            mask = SampledTransform(T2[n : n + 1]).label(masks[n : n + 1].byte()).double()
            targets.append(torch.cat([mask, 1 - mask.amax(1, keepdim=True)], dim=1))
        else:
            answer = Levels()(view1[n : n + 1])
            t1, t2 = SampledTransform(T1[n : n + 1]), SampledTransform(T2[n : n + 1])
            targets.append(align(t1, t2, answer))
    seen, expected = view2.clone(), torch.cat(targets)
    unmixed = expected.clone()
    for n in range(BATCH):
        seen[n][:, box[n, 0]] = view2[partner[n]][:, box[n, 0]]
        expected[n][:, box[n, 0]] = unmixed[partner[n]][:, box[n, 0]]
    # The learner sees the first views that labels are known of; without a teacher all.
    alone = LABELLED if teacher is not None else BATCH
    assert torch.equal(network.seen, torch.cat([view1[:alone], seen]))
    if teacher is not None:
        assert torch.equal(teacher.seen, view1[LABELLED:])
    consistency = soft_iou_loss(expected, Levels()(seen)).mean()
    assert terms.consistency.item() == pytest.approx(consistency.item())
    # Of the second view of labelled images, only the consistency term knows the labels.
    mask = SampledTransform(T1[:LABELLED]).label(masks.byte()).double()
    target = torch.cat([mask, 1 - mask.amax(1, keepdim=True)], dim=1)
    supervised = soft_iou_loss(target, Levels()(view1[:LABELLED])).mean()
    assert terms.supervised.item() == pytest.approx(supervised.item())


def test_mixed_labelled_images_alone_leave_the_teacher_nothing(network, images):
    masks = tcwarp.gaussian_smooth(torch.rand(BATCH, CLASSES, *SIZE), 2.0) > 0.5
    box = torch.zeros(BATCH, 1, *SIZE, dtype=torch.bool)
    mix = Exchange(box, list(range(BATCH)))
    terms = objective(network, images, masks, teacher=(teacher := Network()), mix=mix)
    assert torch.isfinite(terms.total)
    assert not hasattr(teacher, "seen")  # of a batch of nothing torch warns
