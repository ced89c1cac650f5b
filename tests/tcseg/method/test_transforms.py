"""Random transforms: what they do to images and labels, how strong they are, how they align."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import tcwarp
from tcseg.method.recipes import RECIPES, recipe
from tcseg.method.transforms import (
    Affine,
    Compose,
    Elastic,
    Intensity,
    SampledTransform,
    align,
)

SIZE = (64, 64)
ELASTIC = Elastic(displacement_std=16.0, sigma=96.0, identity_probability=0.0)
AFFINE = Affine(identity_probability=0.0)
MOVING = {
    "elastic": ELASTIC,
    "affine": AFFINE,
    "compose": Compose([AFFINE, ELASTIC]),
    "half identity": replace(ELASTIC, identity_probability=0.5),
    "strong": RECIPES["strong"],
}
moving = pytest.mark.parametrize("transform", MOVING.values(), ids=MOVING)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def discs(batch):
    """Overlapping discs, uint8 (batch, 3, H, W)."""
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in SIZE), indexing="ij")
    centre = torch.rand(2, batch, 3, 1, 1, generator=seeded()) - 0.5
    return ((y - centre[0]).square() + (x - centre[1]).square() < 0.16).to(torch.uint8)


def coordinates(batch):
    """An image whose values say where it was read: (batch, 2, H, W)."""
    grid = torch.meshgrid(*(torch.arange(float(n)) for n in SIZE), indexing="ij")
    return torch.stack(grid).repeat(batch, 1, 1, 1)


@dataclass(frozen=True)
class Fixed:
    """A transform that is always the same."""

    displacement: torch.Tensor | None = None
    adjust: Callable[[torch.Tensor], torch.Tensor] | None = None

    def sample(self, batch, size, generator):
        return SampledTransform(self.displacement, self.adjust)


def root_mean_square(tensor):
    return tensor.square().mean().sqrt().item()


# Images and labels.


@moving
def test_image_and_label_move_alike(transform):
    labels = discs(8)
    sampled = transform.sample(8, SIZE, seeded())
    moved = sampled.label(labels)
    for c in range(3):
        image = SampledTransform(sampled.displacement).image(labels[:, c : c + 1].float())[:, 0]
        # Where all that linear interpolation reads is one value, nearest reads that value too.
        inside, outside = image > 1 - 1e-5, image < 1e-5
        assert (inside | outside).float().mean() > 0.85
        assert moved[:, c][inside].eq(1).all()
        assert moved[:, c][outside].eq(0).all()
    assert (moved != labels).float().mean() > 0.005


@moving
def test_labels_are_copied_never_mixed(transform):
    moved = transform.sample(4, SIZE, seeded()).label(discs(4) * 200 + 7)
    assert moved.dtype == torch.uint8
    assert set(moved.unique().tolist()) == {7, 207}


def test_a_draw_reads_where_its_displacement_points():
    displacement = torch.zeros(1, 2, *SIZE)
    displacement[:, 0], displacement[:, 1] = 2, -0.25
    y, x = coordinates(1)[0]
    sampled = SampledTransform(displacement)
    # A spline bends at the border, where the slope ends; a few pixels on it is straight.
    inner = (slice(12, -12), slice(12, -12))
    for plane, step in ((y, 2), (x, -0.25)):
        shown = sampled.image(plane[None, None])[0, 0]
        assert (shown - (plane + step))[inner].abs().max() < 1e-4
    # Beyond the border, the border.
    assert sampled.image(y[None, None])[0, 0, -1].sub(63).abs().max() < 1e-4
    assert torch.equal(sampled.label(x[None, None])[0, 0], x)


def test_the_image_is_adjusted_after_the_warp():
    displacement = torch.zeros(1, 2, *SIZE)
    displacement[:, 0] = 2
    image = coordinates(1)[:, :1] / 64
    sampled = SampledTransform(displacement, lambda images: images * coordinates(1)[:, :1])
    expected = SampledTransform(displacement).image(image) * coordinates(1)[:, :1]
    assert torch.equal(sampled.image(image), expected)


# Drawing.


@pytest.mark.parametrize("transform", [*MOVING.values(), Intensity()], ids=[*MOVING, "intensity"])
@pytest.mark.parametrize("batch", [1, 3])
def test_one_state_of_the_generator_gives_one_draw(transform, batch):
    image = torch.rand(batch, 1, 32, 48, generator=seeded())
    one, same, *others = (
        transform.sample(batch, (32, 48), seeded(state)).image(image) for state in (1, 1, *range(8))
    )
    assert one.shape == image.shape
    assert one.dtype == torch.float32
    assert one.isfinite().all()
    assert torch.equal(one, same)
    # Some may both be the identity.
    assert sum(not torch.equal(one, other) for other in others) >= 2


@pytest.mark.parametrize("transform", [*MOVING.values(), Intensity()], ids=[*MOVING, "intensity"])
def test_a_second_draw_from_one_generator_is_another(transform):
    generator = seeded()
    image = torch.rand(8, 1, *SIZE, generator=seeded())
    one, other = (transform.sample(8, SIZE, generator).image(image) for _ in range(2))
    assert not torch.equal(one, other)


@moving
def test_members_of_a_batch_are_drawn_apart(transform):
    displacement = transform.sample(16, SIZE, seeded()).displacement
    moved = displacement[displacement.flatten(1).any(dim=1)]
    assert len(moved) > 4
    assert len(moved.flatten(1).unique(dim=0)) == len(moved)


@pytest.mark.parametrize("kind", [Elastic, Affine])
def test_identity_probability(kind):
    def moved(probability):
        sampled = kind(identity_probability=probability).sample(400, (32, 32), seeded())
        return sampled.displacement.flatten(1).any(dim=1).float().mean().item()

    assert moved(0.0) == 1
    assert moved(1.0) == 0
    assert moved(0.5) == pytest.approx(0.5, abs=0.08)  # three standard deviations
    assert moved(0.2) == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize("kind", [Elastic, Affine])
def test_an_identity_leaves_image_and_label_bit_for_bit(kind):
    image = torch.rand(4, 1, *SIZE, generator=seeded())
    sampled = kind(identity_probability=1.0).sample(4, SIZE, seeded())
    assert torch.equal(sampled.image(image), image)
    assert torch.equal(sampled.label(discs(4)), discs(4))


def test_compose_leaves_pixels_in_place_as_often_as_it_says():
    parts = [AFFINE, ELASTIC, Intensity()]
    for probability in (0.0, 0.2, 1.0):
        sampled = Compose(parts, identity_probability=probability).sample(400, (32, 32), seeded())
        moved = sampled.displacement.flatten(1).any(dim=1).float().mean().item()
        assert moved == pytest.approx(1 - probability, abs=0.06)
        images = torch.rand(400, 1, 32, 32, generator=seeded())
        assert (sampled.image(images) != images).flatten(1).any(dim=1).all()  # values still change


# Elastic.


def test_the_paper_recipe_has_the_numbers_of_the_paper():
    drawn = RECIPES["paper"].sample(4, (512, 512), seeded()).displacement
    expected = tcwarp.random_displacement(
        4, (512, 512), magnitude=1000, sigma=100, identity_probability=0.5, generator=seeded()
    )
    assert torch.equal(drawn, expected)


@pytest.mark.parametrize("size", [32, 128])
def test_the_paper_recipe_moves_pixels_by_2_of_512(size):
    transform = Elastic(magnitude=1000.0, sigma=100.0, identity_probability=0.0)
    drawn = transform.sample(400, (size, size), seeded()).displacement
    # Smoothed white noise on 512 pixels: the variance that each axis leaves of it.
    left = (tcwarp.reference.eigenvalues(512, 100.0) ** 2).sum() / 512
    expected = 1000 / math.sqrt(3) * left
    assert expected == pytest.approx(2.2, abs=0.1)
    assert root_mean_square(drawn) * 512 / size == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    "transform",
    [Elastic(identity_probability=0.0), ELASTIC],
    ids=["magnitude", "displacement_std"],
)
def test_a_picture_deforms_alike_at_every_size(transform):
    # One seed draws the same modes, so the field itself is the same, 4 times smaller.
    large = transform.sample(4, (512, 512), seeded()).displacement
    small = transform.sample(4, (128, 128), seeded()).displacement
    expected = torch.nn.functional.avg_pool2d(large, 4) / 4
    assert root_mean_square(small - expected) < 0.01 * root_mean_square(expected)


@pytest.mark.parametrize("size", [(48, 128), (128, 48)])
def test_a_picture_without_margins_deforms_as_with_them(size):
    field = ELASTIC.sample(500, size, seeded()).displacement
    assert root_mean_square(field) == pytest.approx(16 * 128 / 512, rel=0.05)


def test_displacement_std_is_the_root_mean_square_at_512():
    drawn = ELASTIC.sample(400, (64, 64), seeded()).displacement
    assert root_mean_square(drawn) * 512 / 64 == pytest.approx(16, rel=0.05)


# Affine.


def linear_part(displacement):
    """Return A (b, 2, 2) and the displacement of the centre (b, 2), in double."""
    displacement = displacement.double()
    rows = displacement[:, :, -1, 0] - displacement[:, :, 0, 0]
    columns = displacement[:, :, 0, -1] - displacement[:, :, 0, 0]
    height, width = displacement.shape[-2:]
    matrix = torch.stack([rows / (height - 1), columns / (width - 1)], dim=2) + torch.eye(2)
    return matrix, (displacement[:, :, 0, 0] + displacement[:, :, -1, -1]) / 2


def test_an_affine_draw_is_affine():
    displacement = AFFINE.sample(8, (40, 60), seeded()).displacement
    for axis in (2, 3):
        assert displacement.diff(n=2, dim=axis).abs().max() < 1e-5
    assert displacement.shape == (8, 2, 40, 60)


def test_rotation_turns_by_up_to_its_bound_about_the_centre():
    turned = Affine(rotation=20, scale=0, shear=0, shift=0, identity_probability=0)
    matrix, centre = linear_part(turned.sample(200, (40, 60), seeded()).displacement)
    product = matrix @ matrix.mT
    torch.testing.assert_close(product, torch.eye(2).double().expand(200, 2, 2), rtol=0, atol=1e-5)
    angle = torch.rad2deg(torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0]))
    assert 18 < angle.max() < 20.001
    assert -20.001 < angle.min() < -18
    assert centre.abs().max() < 1e-5


def test_scale_and_shear_change_by_up_to_their_bounds():
    scaled = Affine(rotation=0, scale=0.2, shear=0.1, shift=0, identity_probability=0)
    matrix, centre = linear_part(scaled.sample(200, (40, 60), seeded()).displacement)
    for k in range(2):
        assert 0.8 - 1e-5 < matrix[:, k, k].min() < 0.82
        assert 1.18 < matrix[:, k, k].max() < 1.2 + 1e-5
    assert 0.09 < matrix[:, 0, 1].abs().max() < 0.1 + 1e-5
    assert matrix[:, 1, 0].abs().max() < 1e-5
    assert centre.abs().max() < 1e-5


@pytest.mark.parametrize("size", [(40, 64), (80, 128), (96, 32)])
def test_shift_is_a_fraction_of_the_longer_side(size):
    shifted = Affine(rotation=0, scale=0, shear=0, shift=0.05, identity_probability=0)
    displacement = shifted.sample(200, size, seeded()).displacement
    assert (displacement.flatten(2).std(dim=2) < 1e-5).all()
    for component in displacement[:, :, 0, 0].T:
        assert 0.045 < component.abs().max() / max(size) <= 0.05 + 1e-6
        assert component.min() < 0 < component.max()


# Intensity.


def test_intensity_leaves_labels_alone():
    sampled = Intensity().sample(4, SIZE, seeded())
    labels = discs(4)
    assert sampled.displacement is None
    assert torch.equal(sampled.label(labels), labels)
    assert not torch.equal(sampled.image(labels[:, :1].float()), labels[:, :1].float())


def test_intensity_of_strength_0_changes_nothing():
    image = torch.rand(4, 1, *SIZE, generator=seeded())
    sampled = Intensity(gamma=0, contrast=0, brightness=0, noise=0).sample(4, SIZE, seeded())
    torch.testing.assert_close(sampled.image(image), image, rtol=0, atol=1e-6)


def test_intensity_leaves_some_images_as_they_are():
    images = torch.rand(64, 1, *SIZE, generator=seeded(2)) * 1.5 - 0.2  # splines overshoot
    same = torch.stack(
        [
            (a == b).all()
            for a, b in zip(
                Intensity(identity_probability=0.5).sample(64, SIZE, seeded()).image(images),
                images,
                strict=True,
            )
        ]
    )
    assert 16 < same.sum() < 48
    assert not (Intensity().sample(64, SIZE, seeded()).image(images) == images).all()


# What stays constant within an image under each part of Intensity alone.
CONSTANT = {
    "gamma": lambda before, after: after.log() / before.log(),
    "contrast": lambda before, after: (after - before.mean()) / (before - before.mean()),
    "brightness": lambda before, after: after - before,
}
NO_INTENSITY = {"gamma": 0.0, "contrast": 0.0, "brightness": 0.0, "noise": 0.0}


@pytest.mark.parametrize("name", CONSTANT)
def test_each_part_of_intensity_does_what_its_name_says(name):
    images = torch.rand(4, 1, *SIZE, generator=seeded())
    transform = Intensity(**(NO_INTENSITY | {name: 0.3}))
    factors = []
    for before, after in zip(
        images, transform.sample(4, SIZE, seeded(1)).image(images), strict=True
    ):
        clear = before.gt(0.1) & before.lt(0.9) & (before - before.mean()).abs().gt(0.1)
        factor = CONSTANT[name](before, after)[clear]
        assert factor.std() < 1e-4
        factors.append(factor.mean().item())
    assert len({round(factor, 3) for factor in factors}) == 4
    assert 1 not in factors


def test_noise_is_drawn_for_every_pixel_at_a_strength_of_each_image():
    images = torch.rand(4, 1, *SIZE, generator=seeded())
    sampled = Intensity(**(NO_INTENSITY | {"noise": 0.1})).sample(4, SIZE, seeded(1))
    noise = (sampled.image(images) - images).flatten(1)
    deviations = noise.std(dim=1)
    assert (noise.mean(dim=1).abs() < 4 * deviations / 64).all()
    assert len({round(d, 4) for d in deviations.tolist()}) == 4
    assert 0.02 < root_mean_square(deviations) < 0.25
    assert torch.corrcoef(noise / deviations[:, None]).triu(1).abs().max() < 0.1


# Compose.


def turn_and_shift():
    """A rotation by 20 degrees about the centre and a shift by 5 rows: they do not commute."""
    angle = math.radians(20)
    matrix = torch.tensor(
        [[math.cos(angle) - 1, -math.sin(angle)], [math.sin(angle), math.cos(angle) - 1]]
    )
    turn = (matrix @ (coordinates(1) - 31.5).flatten(2)).view(1, 2, *SIZE)
    shift = torch.zeros_like(turn)
    shift[:, 0] = 5
    return Fixed(turn), Fixed(shift)


def test_compose_applies_the_first_first():
    turn, shift = (t.sample(1, SIZE, seeded()) for t in turn_and_shift())
    joined = Compose(turn_and_shift()).sample(1, SIZE, seeded())
    # Reading an image twice blurs it, or rounds twice; the other order shows another place.
    image, label = discs(1)[:, :1].float(), discs(1)[:, :1]
    one_by_one, other_way = shift.image(turn.image(image)), turn.image(shift.image(image))
    assert (joined.image(image) - one_by_one).abs().mean() < 0.005
    assert (joined.image(image) - other_way).abs().mean() > 0.02
    assert (joined.label(label) != shift.label(turn.label(label))).float().mean() < 0.005
    assert (joined.label(label) != turn.label(shift.label(label))).float().mean() > 0.02


def test_compose_reads_the_image_once():
    # A sharp line, moved by half a pixel and back: read twice, it would be blurred.
    image = torch.zeros(1, 1, *SIZE)
    image[..., 32] = 1
    half = torch.zeros(1, 2, *SIZE)
    half[:, 1] = 0.5
    sampled = Compose([Fixed(half), Fixed(-half)]).sample(1, SIZE, seeded())
    assert torch.equal(sampled.image(image), image)


def test_compose_adjusts_values_in_order():
    transforms = [Fixed(adjust=lambda images: images + 1), Fixed(adjust=lambda images: images * 2)]
    sampled = Compose(transforms).sample(1, SIZE, seeded())
    assert sampled.displacement is None
    assert sampled.image(torch.ones(1, 1, *SIZE)).unique().tolist() == [4]


def test_compose_of_nothing_is_the_identity():
    image = torch.rand(2, 1, *SIZE, generator=seeded())
    assert Compose([]).sample(2, SIZE, seeded()).image(image) is image


def test_compose_draws_its_parts_apart():
    # One state for both would make the second undo or double the first.
    generator = seeded()
    joined = Compose([ELASTIC, ELASTIC]).sample(4, SIZE, seeded())
    first, second = (ELASTIC.sample(4, SIZE, generator).displacement for _ in range(2))
    assert torch.equal(joined.displacement, tcwarp.compose(first, second))


# Alignment: t2 o t1^-1.


@pytest.mark.parametrize("transform", [ELASTIC, AFFINE, MOVING["compose"]], ids=[*MOVING][:3])
def test_what_t1_showed_is_carried_to_where_t2_shows_it(transform):
    generator = seeded()
    t1, t2 = (transform.sample(8, SIZE, generator) for _ in range(2))
    assert root_mean_square(t1.displacement - t2.displacement) > 2
    # Images of coordinates: each pixel says which point of the original it shows.
    original = coordinates(8)
    shown1, shown2 = t1.image(original), t2.image(original)
    field = tcwarp.align(t1.displacement, t2.displacement)
    # Points that both views show, not too near to the border, where a spline of coordinates bends.
    points = torch.cat([original + field, original + t2.displacement], dim=1)
    both = ((points > 6) & (points < 57)).all(dim=1)
    assert both.float().mean() > 0.4

    def furthest(aligned):
        return (aligned - shown2).abs().amax(dim=1)[both].max().item()

    smooth = tcwarp.warp(shown1, field, mode="linear", padding_mode="border")
    assert furthest(smooth) < 0.01
    # Predictions are copied from the nearest pixel: half a pixel of t1's view either way, which
    # is more of the original where t1 squeezes it.
    assert 0.3 < furthest(align(t1, t2, shown1)) < 1
    assert furthest(align(t2, t1, shown1)) > 2
    assert furthest(shown1) > 2


@moving
def test_aligned_labels_agree(transform):
    generator = seeded()
    t1, t2 = (transform.sample(16, SIZE, generator) for _ in range(2))
    labels = discs(16)
    aligned = align(t1, t2, t1.label(labels))
    assert (aligned != t2.label(labels)).float().mean() < 0.015
    assert (t1.label(labels) != t2.label(labels)).float().mean() > 0.02


def test_alignment_from_or_to_an_image_as_it_is():
    still, moved = SampledTransform(), ELASTIC.sample(4, SIZE, seeded())
    labels = discs(4)
    assert torch.equal(align(still, still, labels), labels)
    assert torch.equal(align(still, moved, labels), moved.label(labels))
    back = align(moved, still, moved.label(labels))
    assert (back != labels).float().mean() < 0.02


def test_the_gradient_of_alignment_is_its_adjoint():
    generator = seeded()
    t1, t2 = (MOVING["strong"].sample(4, SIZE, generator) for _ in range(2))
    # Whole numbers: sums in any order are equal, so equality is exact.
    predictions, gradient = torch.randint(-9, 10, (2, 4, 3, *SIZE), generator=seeded()).double()
    predictions.requires_grad_()
    aligned = align(t1, t2, predictions)
    aligned.backward(gradient)
    assert (aligned * gradient).sum().item() == (predictions * predictions.grad).sum().item()
    assert gradient.sum() == predictions.grad.sum()  # with borders repeated nothing is lost


def test_the_gradient_goes_back_to_the_pixels_copied_and_no_others():
    fields = [
        tcwarp.random_displacement(
            2, (12, 12), sigma=4.0, displacement_std=0.8, generator=seeded(s)
        )
        for s in (0, 1)
    ]
    predictions = torch.rand(2, 3, 12, 12, generator=seeded(), requires_grad=True)
    gradient = torch.randint(1, 10, (2, 3, 12, 12), generator=seeded()).float()
    align(SampledTransform(fields[0]), SampledTransform(fields[1]), predictions).backward(gradient)

    field, _ = tcwarp.reference.align(*(f.double().numpy() for f in fields))
    expected = tcwarp.reference.warp_backward(
        gradient.numpy(), field, mode="nearest", padding_mode="border"
    )
    np.testing.assert_array_equal(predictions.grad, expected)
    assert (expected == 0).any()


# Parts of a batch, and recipes of another strength.


def test_rows_of_a_draw_do_what_the_whole_does():
    images = torch.rand(6, 1, *SIZE, generator=seeded(3))
    labels = (images > 0.5).to(torch.uint8)
    sampled = Compose([ELASTIC, Intensity()]).sample(6, SIZE, seeded())
    index = torch.tensor([4, 0, 1])
    rows = sampled.rows(index, 6)
    # Another batch size may go through other vector instructions.
    assert torch.allclose(
        rows.image(images[index]), sampled.image(images)[index], rtol=0, atol=1e-6
    )
    assert torch.equal(rows.label(labels[index]), sampled.label(labels)[index])
    nothing = SampledTransform().rows(index, 6)
    assert nothing.image(images) is images


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_of_another_strength(name):
    assert recipe(name) == RECIPES[name]
    moved = [
        recipe(name, std).sample(64, (64, 64), seeded()).displacement.square().mean().item()
        for std in (0.0, 8.0, 40.0)
    ]
    # Half of the images stay; of the others, two components with a square of 5 pixels each.
    assert moved[2] - moved[0] == pytest.approx(0.5 * (40 / 8) ** 2, rel=0.3)
    assert moved[0] < moved[1] < moved[2]
