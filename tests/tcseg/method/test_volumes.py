"""The method on volumes: the same functions, of three axes."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import tcwarp
from tcseg.data import pack_masks
from tcseg.data.dataset import Dataset
from tcseg.method.losses import LOSSES, over_batch
from tcseg.method.mixing import MIXES
from tcseg.method.network import build_network
from tcseg.method.objective import siamese_objective
from tcseg.method.recipes import recipe
from tcseg.method.transforms import Affine, Compose, Elastic, Intensity, SampledTransform
from tcseg.training.batches import Patches

SIZE = (16, 32, 24)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rms(values: torch.Tensor) -> float:
    return values.square().mean().sqrt().item()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("pool", [lambda loss: loss, over_batch])
def test_losses_sum_over_all_voxels(loss, pool):
    target = (torch.rand(3, 4, 2, 5, 6, generator=seeded()) > 0.6).float()
    prediction = torch.rand(3, 4, 2, 5, 6, generator=seeded(1))
    flat = pool(loss)(target.flatten(2, 3), prediction.flatten(2, 3))
    assert torch.allclose(pool(loss)(target, prediction), flat, atol=1e-6)


def test_elastic_fields_are_as_long_in_mm_along_each_axis():
    spacing = (4.0, 1.0, 2.0)
    elastic = Elastic(displacement_std=40.0, identity_probability=0.0, spacing=spacing)
    field = elastic.sample(200, SIZE, seeded()).displacement
    # The longest side is that of depth, 64 mm.
    in_mm = [rms(part) * side for part, side in zip(field.unbind(1), spacing, strict=True)]
    assert in_mm == pytest.approx([40 * 64 / 512] * 3, rel=0.1)
    # As smooth in mm: one step along depth is four along height.
    part = field[:, 0] / rms(field[:, 0])
    along_depth = (part[:, 1:] - part[:, :-1])[:, 6:-6]
    along_height = (part[:, :, 4:] - part[:, :, :-4])[:, 6:-6, 8:-8]
    assert rms(along_depth) == pytest.approx(rms(along_height), rel=0.15)


def test_the_paper_moves_volumes_as_far_as_images():
    flat = recipe("paper").sample(400, (64, 64), seeded()).displacement
    deep = recipe("paper").sample(100, (64, 64, 64), seeded()).displacement
    assert rms(deep) == pytest.approx(rms(flat), rel=0.25)


def test_rotations_keep_distances_in_mm():
    spacing = torch.tensor([3.0, 1.0, 2.0])
    affine = Affine(
        rotation=30, scale=0, shear=0, shift=0, identity_probability=0, spacing=spacing.tolist()
    )
    moved = affine.sample(5, SIZE, seeded()).displacement
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) * 1.0 for n in SIZE), indexing="ij"))
    before, after = (x * spacing.view(3, 1, 1, 1) for x in (grid, grid + moved))
    steps = [((x[..., 1:, 1:, 1:] - x[..., :-1, :-1, :-1]) ** 2).sum(-4) for x in (before, after)]
    assert torch.allclose(steps[0].expand_as(steps[1]), steps[1], rtol=1e-3)
    assert moved.abs().max() > 1


def test_rotations_of_images_are_those_of_the_plane():
    affine = Affine(rotation=20, scale=0, shear=0, shift=0, identity_probability=0)
    moved = affine.sample(1, (9, 9), seeded()).displacement[0]
    corner = moved[:, 0, 0] - 4  # from the centre
    assert corner.norm() == pytest.approx(4 * math.sqrt(2), rel=1e-5)


@pytest.mark.parametrize("name", MIXES)
def test_boxes_take_their_part_of_a_volume(name):
    mixture = MIXES[name].sample(200, (30, 40, 50), seeded())
    assert mixture.box.shape == (200, 1, 30, 40, 50)
    part = mixture.box.flatten(1).float().mean(1)
    least, most = MIXES[name].area
    assert 0.8 * least < part.min() and part.max() < 1.2 * most
    assert part.mean() == pytest.approx((least + most) / 2, rel=0.1)


class Channels(nn.Module):
    """A network of one weight: sigmoids of a line in the grey level."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([4.0, -2.0]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        y = torch.sigmoid(self.weight[0] * images + self.weight[1])
        return torch.cat([y, 1 - y], dim=1)


class Fixed:
    """Two displacements, one after the other."""

    def __init__(self, *fields: torch.Tensor) -> None:
        self.fields = list(fields)

    def sample(self, batch, size, generator):
        return SampledTransform(self.fields.pop(0))


def test_equation_1_on_volumes():
    images = torch.rand(3, 1, *SIZE, generator=seeded())
    labels = pack_masks((images[:2] > 0.5).numpy(), dimensions=3)
    fields = [
        tcwarp.random_displacement(3, SIZE, sigma=4.0, displacement_std=0.7, generator=seeded(k))
        for k in (1, 2)
    ]
    network = Channels()
    objective = siamese_objective(
        network, images, labels, Fixed(*fields), seeded(), classes=1, consistency_weight=0.7
    )
    soft_iou = LOSSES["soft-iou"]
    views = [tcwarp.warp(images, t, mode="cubic", padding_mode="border") for t in fields]
    masks = torch.cat([labels == 1, labels == 0], dim=1).to(torch.uint8)
    truth = [tcwarp.warp(masks, t[:2], mode="nearest", padding_mode="border") for t in fields]
    y1, y2 = map(network, views)
    supervised = (soft_iou(truth[0], y1[:2]) + soft_iou(truth[1], y2[:2])).mean() / 2
    aligned = tcwarp.warp(y1, tcwarp.align(*fields), mode="nearest", padding_mode="border")
    consistency = soft_iou(aligned, y2).mean()
    assert objective.supervised.item() == pytest.approx(supervised.item(), rel=1e-6)
    assert objective.consistency.item() == pytest.approx(consistency.item(), rel=1e-6)
    assert objective.total.item() == pytest.approx((supervised + 0.7 * consistency).item())


@pytest.mark.parametrize("mix", [None, *MIXES])
@pytest.mark.parametrize("size", [(12, 10), (12, 10, 8)])
def test_what_is_beyond_the_images_counts_nowhere(size, mix):
    """Labels there may be anything: neither loss nor gradient changes."""
    patch = tuple(n // 2 for n in size)
    inside = torch.zeros(4, 1, *size, dtype=torch.uint8)
    inside[..., : size[0] // 2 + 1, :] = 1
    transform = Elastic(displacement_std=60.0, sigma=200.0, identity_probability=0.0)
    results = []
    for value in (0, 200):
        images = torch.rand(4, 1, *size, generator=seeded())
        labels = pack_masks((images[:2] > 0.5).numpy(), dimensions=len(size))
        labels = torch.where(inside[:2] > 0, labels, value).to(torch.uint8)
        network = nn.Sequential(Channels())
        objective = siamese_objective(
            network,
            images,
            labels,
            transform,
            seeded(),
            classes=1,
            mix=MIXES.get(mix),
            patch=patch,
            inside=inside,
        )
        objective.total.backward()
        results.append((objective.total.item(), network[0].weight.grad.tolist()))
    assert results[0] == results[1]


def test_alignment_in_patches_is_exact_where_it_counts():
    """Of whole shifts: labels of one view, aligned to the other, are its labels."""
    images = torch.zeros(1, 1, 16, 16, 16)
    masks = torch.rand(1, 1, 16, 16, 16, generator=seeded()) > 0.5
    shifts = [torch.tensor([2.0, -1, 0]), torch.tensor([-1.0, 3, 1])]
    fields = [shift.view(1, 3, 1, 1, 1).expand(1, 3, 8, 8, 8).contiguous() for shift in shifts]

    class Perfect(nn.Module):
        def forward(self, views):
            cut = [SampledTransform(t).label(masks.to(torch.uint8)) for t in fields]
            y = torch.cat(cut).float()
            return torch.cat([y, 1 - y], dim=1)

    objective = siamese_objective(
        Perfect(),
        images,
        pack_masks(masks.numpy(), dimensions=3),
        Fixed(*fields),
        seeded(),
        classes=1,
        patch=(8, 8, 8),
        inside=torch.ones(1, 1, 16, 16, 16, dtype=torch.uint8),
    )
    assert objective.supervised.item() == 0
    assert objective.consistency.item() == 0


def volumes(extents: list[tuple[int, int, int]]) -> Dataset:
    shape = [max(sides) for sides in zip(*extents, strict=True)]
    images = torch.zeros(len(extents), 1, *shape, dtype=torch.uint8)
    masks = torch.zeros_like(images)
    for n, extent in enumerate(extents):
        own = (n, 0, *map(slice, extent))
        images[own] = torch.arange(1, math.prod(extent) + 1).view(extent) % 251
        masks[n, 0, extent[0] // 2, extent[1] // 2, extent[2] // 2] = 1
    return Dataset(
        name="folder",
        ids=[str(n) for n in range(len(extents))],
        classes=("dot",),
        images=images,
        masks=masks,
        extents=torch.tensor(extents),
    )


def test_patches_of_volumes():
    """Inside a window is the volume, a smaller one in the middle of the patch."""
    extents = [(40, 20, 24), (9, 40, 16)]
    dataset = volumes(extents)
    patches = Patches(dataset, [0, 1], (), "16x16x16")
    indices = torch.tensor([0, 1] * 40)
    window, inside = patches.draw(indices, len(indices), seeded())
    images, masks = dataset.image_batch(indices, window), dataset.mask_batch(indices, window)
    assert images.shape == masks.shape == inside.shape == (80, 1, 32, 32, 32)
    middle = (slice(None), slice(None), *[slice(8, 24)] * 3)
    assert inside[middle][::2].all()  # a patch lies in a volume that is larger
    shown = inside[middle][1::2].flatten(1).sum(1)
    assert (shown == 9 * 16 * 16).all()
    assert inside[1, 0, 8 + 3 : 8 + 12, 16, 16].all() and not inside[1, 0, 8 + 2, 16, 16]
    for number, (volume, within) in enumerate(zip(images, inside, strict=True)):
        grey = (255 * volume[within > 0]).round().to(torch.uint8)
        own = dataset.images[number % 2][(0, *map(slice, extents[number % 2]))]
        assert np.isin(grey.numpy(), own.numpy()).all()
        assert grey[0] in own
    about = masks[middle].flatten(1).any(1)[::2].float().mean().item()
    assert about > 1 / 3  # and by chance
    assert masks[middle].flatten(1).any(1)[1::2].float().mean() > 1 / 3 - 0.1


def test_changes_of_exposure_and_joined_fields():
    transform = Compose([Elastic(displacement_std=20.0), Affine(), Intensity()])
    draw = transform.sample(4, SIZE, seeded())
    assert draw.displacement.shape == (4, 3, *SIZE)
    image = draw.image(torch.rand(4, 1, *SIZE, generator=seeded()))
    assert image.shape == (4, 1, *SIZE) and image.isfinite().all()


def test_the_network_of_volumes():
    network = build_network("unet", 2, channels=1, patch="16x32x32", dimensions=3).eval()
    with torch.inference_mode():
        patch = network(torch.rand(1, 1, 16, 32, 32, generator=seeded()))
        whole = network(torch.rand(1, 1, 20, 40, 33, generator=seeded()))
    assert patch.shape == (1, 3, 16, 32, 32) and whole.shape == (1, 3, 20, 40, 33)


def test_another_network_is_told_of_three_axes():
    network = build_network("monai.networks.nets.basic_unet.BasicUNet", 2, dimensions=3)
    weights = [p for p in network.parameters() if p.dim() == 5]
    assert weights
