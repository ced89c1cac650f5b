"""Points, boxes, affine maps and ITK's fields: against closed forms, SciPy and SimpleITK."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from assertions import assert_close, raises

import tcwarp
import tcwarp.itk


def rotation(degrees, dimensions=2):
    matrix = torch.eye(dimensions, dimensions + 1, dtype=torch.float64)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix[-2:, -3:-1] = torch.tensor([[cosine, -sine], [sine, cosine]])
    return matrix


def random_field(size, sigma, std, device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(17)
    options = {"generator": generator, "dtype": dtype, "device": device}
    return tcwarp.random_displacement(1, size, sigma=sigma, displacement_std=std, **options)


# ---------------------------------------------------------------------------------- affine maps


@pytest.mark.parametrize("size", [(30, 41), (12, 14, 10)])
@pytest.mark.parametrize("mode, order", [("linear", 1), ("cubic", 3)])
def test_affine_displacement_is_scipy_s_affine_transform(device, size, mode, order):
    rng = np.random.default_rng(0)
    dimensions = len(size)
    matrix = np.eye(dimensions) + 0.3 * rng.normal(size=(dimensions, dimensions))
    offset, out = rng.normal(size=dimensions), tuple(n - 3 for n in size)
    image = rng.normal(size=size)
    whole = torch.from_numpy(np.column_stack([matrix, offset])).to(device)
    field = tcwarp.affine_displacement(whole, out)
    warped = tcwarp.warp(torch.from_numpy(image)[None, None].to(device), field, mode=mode)
    # SciPy's "constant" is not the continuation by zeros; inside they agree.
    expected = scipy.ndimage.affine_transform(
        image, matrix, offset, output_shape=out, order=order, mode="grid-constant"
    )
    inside = tcwarp.valid_mask(field, mode=mode, size=size)[0].cpu().numpy()
    margin = 0 if order == 1 else 1e-2
    assert inside.sum() > 100
    difference = np.abs(warped[0, 0].cpu().numpy() - expected)[inside]
    assert difference.max() <= (1e-10 if order == 1 else margin * np.abs(image).max())


def test_affine_displacement_turns_about_its_center(device):
    turn = tcwarp.affine_displacement(rotation(90).to(device), (5, 5), center=(2, 2))
    image = torch.arange(25.0, device=device).view(1, 1, 5, 5)
    expected = torch.rot90(image, -1, (2, 3))
    assert_close(tcwarp.warp(image, turn, mode="linear"), expected, "warp", atol=1e-5)
    last_row = torch.cat([rotation(90), torch.tensor([[0.0, 0.0, 1.0]])]).to(device)
    assert torch.equal(tcwarp.affine_displacement(last_row, (5, 5), center=(2, 2)), turn)


def test_one_reading_for_crop_zoom_and_deformation(device):
    """compose reads the image once: the same as exact readings one after the other."""
    field = random_field((40, 50), 6.0, 1.5, device)
    scale = torch.diag(torch.tensor([2.0, 2.0, 1.0], device=device))
    scale[0, 2] = 3.0
    crop = tcwarp.affine_displacement(scale, (10, 12))
    image = torch.rand(1, 2, 40, 50, device=device)
    once = tcwarp.warp(image, tcwarp.compose(field, crop), mode="linear")
    twice = tcwarp.warp(tcwarp.warp(image, field, mode="linear"), crop, mode="linear")
    assert_close(once, twice, "compose", atol=1e-5)  # the crop reads whole pixels
    assert torch.equal(once.new_tensor(once.shape), once.new_tensor((1, 2, 10, 12)))


@pytest.mark.parametrize(
    "matrix, options, error, parts",
    [
        (np.eye(3), {}, TypeError, ("matrix must be a torch.Tensor", "ndarray")),
        (torch.eye(3, dtype=torch.int64), {}, TypeError, ("matrix must have a floating dtype",)),
        (torch.eye(4), {}, ValueError, ("(N, 2, 3) or (N, 3, 3) for size (4, 5)", "(4, 4)")),
        (torch.eye(3), {"center": (1.0,)}, ValueError, ("center must be 2 numbers, got (1.0,)",)),
        (torch.eye(3), {"center": 1.0}, ValueError, ("center must be 2 numbers, got 1.0",)),
        (torch.eye(3), {"center": "ab"}, ValueError, ("center must be 2 numbers, got 'ab'",)),
        (torch.eye(3), {"center": (None, 0)}, TypeError, ("center must be a number", "NoneType")),
        (torch.eye(3), {"center": (np.nan, 0)}, ValueError, ("center must be finite", "nan")),
        (torch.ones(3, 3), {}, ValueError, ("matrix must have the last row 0 ... 0 1", "1.0")),
    ],
)
def test_affine_displacement_refuses(matrix, options, error, parts):
    with raises(error, "affine_displacement:", *parts):
        tcwarp.affine_displacement(matrix, (4, 5), **options)


# ----------------------------------------------------------------------------- points and boxes


@pytest.mark.parametrize("degrees", [0, 30, 120, 180, 250])
@pytest.mark.parametrize("size", [(40, 50), (9, 30, 26)])
def test_points_turn_with_their_image(device, size, degrees):
    """The rotation back, in closed form; and the bright pixel is found there."""
    dimensions = len(size)
    middle = torch.tensor([(n - 1) / 2 for n in size], dtype=torch.float64)
    matrix = rotation(degrees, dimensions)
    field = tcwarp.affine_displacement(matrix.to(device), size, center=middle.tolist())
    generator = torch.Generator().manual_seed(3)
    points = middle + 16 * (torch.rand(2, 700, dimensions, generator=generator).double() - 0.5) * (
        torch.tensor([min(n, 20) for n in size]) / 20
    )
    moved = tcwarp.warp_points(points.to(device), field)
    expected = (points - middle) @ matrix[:, :dimensions] + middle
    assert_close(moved, expected, "warp_points", atol=1e-8)


def test_points_stay_on_what_they_mark(device):
    """Blobs at random places, deformed: their centres of mass move as the points do."""
    field = random_field((80, 90), 12.0, 3.0, device)
    places = torch.tensor([[20.0, 30.0], [50.0, 60.0], [40.0, 20.0]], device=device)
    y, x = torch.meshgrid(torch.arange(80.0), torch.arange(90.0), indexing="ij")
    grid = torch.stack([y, x]).to(device)
    distances = ((grid - places.view(3, 2, 1, 1)) ** 2).sum(dim=1)
    blobs = tcwarp.warp(torch.exp(-distances / 4)[None], field, mode="cubic")[0]
    centres = (blobs[:, None] * grid).sum(dim=(2, 3)) / blobs.sum(dim=(1, 2))[:, None]
    moved = tcwarp.warp_points(places[None], field)
    # Where the field bends, the centre of a blob is not quite that of what it becomes.
    assert (moved[0] - centres).abs().max() < 0.3
    assert (moved[0] - places).abs().max() > 1.5


def test_gradients_of_points(device):
    field = random_field((8, 9), 3.0, 0.5, device, torch.float64).requires_grad_()
    points = (1.3 + 4 * torch.rand(2, 5, 2, dtype=torch.float64, device=device)).requires_grad_()
    assert torch.autograd.gradcheck(tcwarp.warp_points, (points, field), atol=1e-5)


@pytest.mark.filterwarnings("ignore::tcwarp.FoldingWarning")
def test_points_without_a_place_are_nan(device):
    folded = torch.zeros(1, 2, 1, 20, device=device)
    folded[..., 10:] = torch.nan
    points = torch.tensor([[[0.0, 3.0], [0.0, 15.0], [torch.nan, 2.0]]], device=device)
    moved = tcwarp.warp_points(points, folded)[0]
    assert torch.equal(moved[0], points[0, 0])
    assert moved[1:].isnan().all(dim=1).all()
    assert tcwarp.warp_points(points[:, :0], folded).shape == (1, 0, 2)


def test_boxes(device):
    size = (60, 60)
    turn = tcwarp.affine_displacement(rotation(45).to(device), size, center=(29.5, 29.5))
    box = torch.tensor([[[19.5, 19.5, 39.5, 39.5]]], dtype=torch.float64, device=device)
    half = 10 * 2**0.5
    expected = torch.tensor([[[29.5 - half] * 2 + [29.5 + half] * 2]], dtype=torch.float64)
    assert_close(tcwarp.warp_boxes(box, turn), expected, "warp_boxes", atol=1e-8)


@pytest.mark.parametrize("function, columns", [(tcwarp.warp_points, 2), (tcwarp.warp_boxes, 4)])
def test_wrong_points(function, columns):
    field = torch.zeros(2, 2, 4, 5)
    name = function.__name__
    with raises(TypeError, f"{name}: ", "must be a torch.Tensor", "list"):
        function([[0, 0]], field)
    with raises(TypeError, f"{name}: ", "must have a floating dtype", "int64"):
        function(torch.zeros(2, 3, columns, dtype=torch.int64), field)
    for shape in ((2, 3, 3), (3, 4, columns), (2, columns)):
        with raises(ValueError, f"{name}: ", f"(N, number, {columns})", str(shape)):
            function(torch.zeros(shape), field)


@pytest.mark.parametrize("size", [(64, 64), (20, 18, 22)])
def test_points_of_monai_go_there_and_back(size):
    """Back by the field itself, exactly."""
    pytest.importorskip("monai")
    transform = tcwarp.monai.RandElasticd(
        ["image"], sigma=8.0, displacement_std=2.0, prob=1.0, point_keys=["points", "more"]
    ).set_random_state(3)
    generator = torch.Generator().manual_seed(4)
    points = 4 + 10 * torch.rand(50, len(size), generator=generator, dtype=torch.float64)
    with raises(KeyError, "RandElasticd: key 'more' of point_keys is missing", "'points'"):
        transform({"image": torch.rand(1, *size), "points": points})
    moved = transform({"image": torch.rand(1, *size), "points": points, "more": points[:0]})
    assert (moved["points"] - points).abs().max() > 0.5
    assert_close(transform.inverse(moved)["points"], points, "points", atol=1e-8)
    with raises(ValueError, "RandElasticd: points of 'points' must be a floating array", "int64"):
        transform({"image": torch.rand(1, *size), "points": points.long(), "more": points})
    for wrong in ({"sigma": -1}, {"prob": 2}, {"displacement_std": "a"}):
        with raises((TypeError, ValueError), f"RandElasticd: {next(iter(wrong))} must be"):
            tcwarp.monai.RandElasticd(["image"], **wrong)
    only_points = tcwarp.monai.RandElasticd(
        ["image"], prob=1.0, allow_missing_keys=True, point_keys=["points"]
    )
    assert torch.equal(only_points({"points": points})["points"], points)


def test_random_elastic_moves_points(device):
    deform = tcwarp.RandomElastic(sigma=8.0, displacement_std=2.0)
    image = torch.rand(2, 1, 32, 32, device=device)
    points = torch.full((2, 3, 2), 16.0, device=device)
    seeded = [torch.Generator(device="cpu").manual_seed(1) for _ in range(2)]
    warped, moved = deform(image, points=points, generator=seeded[0])
    field = tcwarp.random_displacement(
        *(2, (32, 32)), sigma=8.0, displacement_std=2.0, generator=seeded[1], device=device
    )
    assert torch.equal(moved, tcwarp.warp_points(points, field))
    expected = tcwarp.warp(image, field, mode="linear", padding_mode="border")
    assert torch.equal(warped, expected)


# ------------------------------------------------------------------------------------------ ITK


def itk_grid(itk, size, seed):
    """An image with spacing, origin and a direction that turns."""
    rng = np.random.default_rng(seed)
    image = itk.GetImageFromArray(rng.normal(size=size))
    dimensions = len(size)
    turn, _ = np.linalg.qr(rng.normal(size=(dimensions, dimensions)))
    if np.linalg.det(turn) < 0:
        turn[:, 0] *= -1
    image.SetDirection(turn.ravel())
    image.SetSpacing(rng.uniform(0.5, 3, dimensions))
    image.SetOrigin(rng.normal(size=dimensions))
    return image


@pytest.mark.parametrize("size", [(20, 25), (9, 10, 12)])
def test_displacements_are_those_of_simpleitk(size):
    itk = pytest.importorskip("SimpleITK")
    image = itk_grid(itk, size, 1)
    displacement = random_field(size, 4.0, 1.5, dtype=torch.float64)
    field = tcwarp.itk.to_itk(displacement, image)
    assert_close(tcwarp.itk.from_itk(field), displacement, "from_itk", atol=1e-12)
    resampled = itk.Resample(image, itk.DisplacementFieldTransform(field))
    expected = torch.from_numpy(itk.GetArrayFromImage(resampled))
    ours = tcwarp.warp(
        torch.from_numpy(itk.GetArrayFromImage(image))[None, None], displacement, mode="linear"
    )[0, 0]
    inside = tcwarp.valid_mask(displacement, mode="linear")[0]
    assert inside.sum() > inside.numel() / 3
    assert_close(ours[inside], expected[inside], "warp", atol=1e-9)


def test_wrong_fields_of_itk():
    itk = pytest.importorskip("SimpleITK")
    image = itk_grid(itk, (4, 5), 1)
    with raises(TypeError, "from_itk: field must be a SimpleITK.Image", "ndarray"):
        tcwarp.itk.from_itk(np.zeros((4, 5, 2)))
    with raises(ValueError, "from_itk: field must have", "1 components"):
        tcwarp.itk.from_itk(image)
    field = tcwarp.itk.to_itk(torch.ones(1, 2, 4, 5), image)
    transform = itk.DisplacementFieldTransform(field)
    with raises(ValueError, "from_itk: field must have pixels, got none", "GetDisplacementField()"):
        tcwarp.itk.from_itk(field)
    with raises(TypeError, "got DisplacementFieldTransform", "TransformToDisplacementField"):
        tcwarp.itk.from_itk(transform)
    back = tcwarp.itk.from_itk(transform.GetDisplacementField())
    assert_close(back, torch.ones(1, 2, 4, 5), "from_itk", atol=1e-12)
    with raises(ValueError, "to_itk: displacement must have shape (1, 2, 4, 5)", "(1, 2, 5, 4)"):
        tcwarp.itk.to_itk(torch.zeros(1, 2, 5, 4), image)
    with raises(TypeError, "to_itk: reference must be a SimpleITK.Image", "tuple"):
        tcwarp.itk.to_itk(torch.zeros(1, 2, 5, 4), (5, 4))
