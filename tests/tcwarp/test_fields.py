"""Random fields and Gaussian smoothing: values, law, borders, seeds."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch
from assertions import assert_bits_equal, assert_close
from processes import python
from scipy import ndimage, stats

import tcwarp
from tcwarp import _modes, reference

SIZES = [(24, 17), (1, 9), (9, 6, 11)]


def generator(seed: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def seed_drawn_from(seed: int) -> int:
    """The 64-bit key that `random_displacement` takes from a generator."""
    return int(torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator(seed)))


WAYS = {
    "matrices": {"smoothing.MOST_BLOCKS": 0},
    "fast transforms": {"smoothing.MOST_BLOCKS": 0, "_modes.LARGEST_BASIS": 0},
    "blocks": {"smoothing.BLOCK": 3},
}


@pytest.fixture(params=WAYS)
def modes_by(request, monkeypatch):
    """How fields are drawn and images smoothed, by the size and the width of the Gaussian."""
    monkeypatch.setattr(_modes, "factors", _modes.Cache(2**20))
    for name, value in WAYS[request.param].items():
        monkeypatch.setattr(f"tcwarp.{name}", value)


# ------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("modes", [(3, 5), (2, 4, 3), (1, 1)])
@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1, -1, -(2**63)])
@pytest.mark.parametrize("identity_probability", [0.0, 0.5, 1.0])
def test_coefficients_equal_reference(device, seed, modes, identity_probability):
    coefficients = torch.ops.tcwarp.field_coefficients(
        torch.tensor([seed], device=device), 0, 6 * len(modes), modes, identity_probability
    )
    expected = reference.field_coefficients(seed, 6, modes, identity_probability)
    expected = expected.reshape(-1, *modes)
    assert coefficients.dtype == torch.float64
    # Logarithm and cosine differ by units in the last place between libraries.
    assert_close(coefficients, expected, "field_coefficients", atol=1e-14 * 40)
    some = torch.ops.tcwarp.field_coefficients(
        torch.tensor([seed], device=device), 3, 4, modes, identity_probability
    )
    assert_bits_equal(some, coefficients[3:7], "field_coefficients")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sigma", [0.5, 2.3, 40.0])
@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_field_equals_reference(device, modes_by, size, sigma, dtype, atol):
    # Drawn on the CPU, the seed gives the same field on every device.
    field = tcwarp.random_displacement(
        2, size, magnitude=10, sigma=sigma, generator=generator(3), dtype=dtype, device=device
    )
    expected = reference.random_displacement(seed_drawn_from(3), 2, size, magnitude=10, sigma=sigma)
    assert field.dtype == dtype
    assert field.device.type == device
    assert_close(field, expected, "random_displacement", atol=atol * 30)


def test_field_with_all_options_equals_reference(device):
    options = {"sigma": (3.0, 1.2), "displacement_std": 2.5, "identity_probability": 0.4}
    field = tcwarp.random_displacement(
        8, (13, 10), **options, generator=generator(5), dtype=torch.float64, device=device
    )
    expected = reference.random_displacement(seed_drawn_from(5), 8, (13, 10), **options)
    assert_close(field, expected, "random_displacement", atol=1e-12)
    identities = field.flatten(1).eq(0).all(dim=1)
    assert 0 < identities.sum() < 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_field_in_half_precision_is_the_rounded_one(dtype):
    options = {"sigma": 4.0, "displacement_std": 2.0}
    single = tcwarp.random_displacement(2, (20, 20), generator=generator(1), **options)
    half = tcwarp.random_displacement(2, (20, 20), generator=generator(1), dtype=dtype, **options)
    assert_bits_equal(half, single.to(dtype), "random_displacement")


# --------------------------------------------------------------------------------------- law


def smoothing_matrix(n: int, sigma: float) -> np.ndarray:
    """What SciPy does to each unit impulse: the smoothing as a matrix."""
    return ndimage.gaussian_filter1d(np.eye(n), sigma, axis=0, truncate=8, mode="reflect")


@pytest.fixture(scope="module")
def many_fields() -> tuple[np.ndarray, tuple[int, int], tuple[float, float]]:
    """20,000 independent components of small fields; magnitude 50."""
    size, sigma = (14, 11), (2.0, 1.5)
    fields = tcwarp.random_displacement(
        10000, size, magnitude=50, sigma=sigma, generator=generator(0), dtype=torch.float64
    )
    return fields.numpy(), size, sigma


def expected_covariance(size, sigma, magnitude=50.0) -> list[np.ndarray]:
    """Factors, one per axis, of the covariance of smoothed U(-magnitude, magnitude) noise."""
    factors = [smoothing_matrix(n, s) for n, s in zip(size, sigma, strict=True)]
    scale = (magnitude**2 / 3) ** (1 / len(size))
    return [scale * factor @ factor.T for factor in factors]


def test_variance_map_is_that_of_smoothed_noise(many_fields):
    fields, size, sigma = many_fields
    along_y, along_x = expected_covariance(size, sigma)
    expected = np.diag(along_y)[:, None] * np.diag(along_x)
    for component in range(2):
        variance = (fields[:, component] ** 2).mean(axis=0)
        # The standard error of a variance from 10,000 draws is 1.4 %.
        np.testing.assert_allclose(variance, expected, rtol=5 * math.sqrt(2 / 10000))
        error = np.sqrt(expected / 10000)
        assert (np.abs(fields[:, component].mean(axis=0)) < 5 * error).all()


def test_covariance_of_all_pixels_with_one(many_fields):
    fields, size, sigma = many_fields
    along_y, along_x = expected_covariance(size, sigma)
    for y, x in ((0, 0), (7, 5), (13, 2)):
        expected = along_y[y][:, None] * along_x[x]
        covariance = np.einsum("n,nyx->yx", fields[:, 0, y, x], fields[:, 0]) / 10000
        variance = np.diag(along_y)[:, None] * np.diag(along_x)
        error = np.sqrt((variance * variance[y, x] + expected**2) / 10000)
        assert (np.abs(covariance - expected) < 5 * error).all()


def test_correlation_length():
    # Far from the border, smoothed white noise has the correlation exp(-d^2 / 4 sigma^2).
    fields = tcwarp.random_displacement(
        4000, (1, 96), sigma=(1.0, 6.0), generator=generator(2), dtype=torch.float64
    ).numpy()[:, :, 0]
    centre = fields[..., 48]
    for distance in (3, 6, 12, 20):
        correlation = np.corrcoef(centre.ravel(), fields[..., 48 + distance].ravel())[0, 1]
        expected = math.exp(-(distance**2) / (4 * 6.0**2))
        assert correlation == pytest.approx(expected, abs=5 / math.sqrt(8000))


def test_values_are_normal(many_fields):
    fields, size, sigma = many_fields
    along_y, along_x = expected_covariance(size, sigma)
    for y, x in ((0, 0), (6, 5)):
        values = fields[:, :, y, x].ravel() / math.sqrt(along_y[y, y] * along_x[x, x])
        assert stats.kstest(values, "norm").pvalue > 1e-3
        assert abs(stats.kurtosis(values)) < 5 * math.sqrt(24 / len(values))


def test_smoothed_uniform_noise_has_the_same_law(many_fields):
    # The sampler against the paper's recipe itself, carried out with SciPy.
    fields, size, sigma = many_fields
    noise = np.random.default_rng(4).uniform(-50, 50, size=(4000, *size))
    smoothed = ndimage.gaussian_filter(noise, (0, *sigma), truncate=8, mode="reflect")
    for y, x in ((0, 3), (7, 5)):
        assert stats.ks_2samp(fields[:, 0, y, x], smoothed[:, y, x]).pvalue > 1e-3
        step, expected_step = (
            a[..., y, x] - a[..., y + 2, x + 1] for a in (fields[:, 0], smoothed)
        )
        assert stats.ks_2samp(step, expected_step).pvalue > 1e-3


def test_components_and_samples_are_independent(many_fields):
    fields, _, _ = many_fields
    for y, x in ((0, 0), (7, 5)):
        components = np.corrcoef(fields[:, 0, y, x], fields[:, 1, y, x])[0, 1]
        samples = np.corrcoef(fields[:-1, 0, y, x], fields[1:, 0, y, x])[0, 1]
        assert abs(components) < 5 / 100
        assert abs(samples) < 5 / 100


def test_three_components_are_independent_and_alike():
    fields = tcwarp.random_displacement(
        3000, (5, 6, 4), sigma=1.0, displacement_std=2.0, generator=generator(6)
    ).numpy()
    correlation = np.corrcoef(fields[:, :, 2, 3, 1].T)
    assert (np.abs(correlation - np.eye(3)) < 5 / math.sqrt(3000)).all()
    rms = np.sqrt((fields**2).mean(axis=(0, 2, 3, 4)))
    np.testing.assert_allclose(rms, 2.0, rtol=0.03)


def test_standard_deviation_far_from_the_border():
    # Each axis divides the variance a^2 / 3 of the noise by 2 sqrt(pi) sigma: with both axes
    # a / (sqrt(3) 2 sqrt(pi) sigma), the 1.6 px of the paper. An axis of one pixel has no share.
    fields = tcwarp.random_displacement(
        4000, (512, 1), magnitude=1000, sigma=100, generator=generator(8)
    )
    expected = 1000 / math.sqrt(3) / math.sqrt(2 * math.sqrt(math.pi) * 100)
    assert fields[:, :, 256].std().item() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("size, sigma", [((32, 48), 3.0), ((32, 48), 100.0), ((20, 8), (2.0, 9.0))])
def test_displacement_std_is_the_root_mean_square(size, sigma):
    fields = tcwarp.random_displacement(
        4000, size, sigma=sigma, displacement_std=4.0, generator=generator(9)
    )
    assert fields.square().mean().sqrt().item() == pytest.approx(4.0, rel=0.05)


# ------------------------------------------------------------------------------------- seeds


def test_one_seed_one_field(device):
    first, second = (
        tcwarp.random_displacement(2, (16, 16), sigma=3.0, generator=generator(1, device))
        for _ in range(2)
    )
    assert first.device.type == device
    assert_bits_equal(first, second, "random_displacement")


def test_each_call_draws_anew():
    source = generator(1)
    first, second = (
        tcwarp.random_displacement(1, (16, 16), sigma=3.0, generator=source) for _ in range(2)
    )
    assert not first.equal(second)


def test_default_generator_follows_manual_seed():
    fields = []
    for _ in range(2):
        torch.manual_seed(11)
        fields.append(tcwarp.random_displacement(1, (16, 16), sigma=3.0))
    assert_bits_equal(fields[0], fields[1], "random_displacement")


def test_own_generator_leaves_the_default_one_alone():
    state = torch.get_rng_state()
    tcwarp.random_displacement(1, (16, 16), sigma=3.0, generator=generator(1))
    assert state.equal(torch.get_rng_state())


def test_a_field_does_not_depend_on_the_batch_around_it():
    alone, among = (
        tcwarp.random_displacement(
            n, (16, 16), sigma=3.0, generator=generator(1), dtype=torch.float64
        )
        for n in (1, 5)
    )
    # A product of matrices may add in another order for another batch.
    assert_close(alone[0], among[0], "random_displacement", atol=1e-10)


def test_number_of_threads_does_not_matter(threads):
    coefficients, fields = [], []
    for count in threads:
        torch.set_num_threads(count)
        coefficients.append(
            torch.ops.tcwarp.field_coefficients(torch.tensor([4]), 0, 18, [33, 21], 0.3)
        )
        fields.append(tcwarp.random_displacement(4, (90, 70), sigma=2.0, generator=generator(1)))
    for other in coefficients[1:]:
        assert_bits_equal(other, coefficients[0], "field_coefficients")
    for other in fields[1:]:
        assert_close(other, fields[0], "random_displacement", atol=1e-3)


def test_identity_probability(device):
    def draw(probability):
        return tcwarp.random_displacement(
            400,
            (4, 4),
            sigma=2.0,
            identity_probability=probability,
            generator=generator(2),
            device=device,
        )

    never, half, always = draw(0.0), draw(0.5), draw(1.0)
    assert not always.any()
    assert never.flatten(1).any(dim=1).all()
    identity = half.flatten(1).eq(0).all(dim=1)
    assert 150 < identity.sum() < 250
    assert_close(half[~identity], never[~identity], "random_displacement", atol=1e-3)


@pytest.mark.parametrize("batch, size", [(0, (4, 5)), (2, (0, 5)), (2, (4, 0, 3))])
def test_empty_fields(device, batch, size):
    field = tcwarp.random_displacement(batch, size, device=device)
    assert field.shape == (batch, len(size), *size)
    assert field.device.type == device


def test_inference_mode_leaves_no_trace():
    with torch.inference_mode():
        tcwarp.random_displacement(1, (23, 29), sigma=3.0)
        tcwarp.gaussian_smooth(torch.rand(1, 1, 23, 29), 9.0)
    # What is cached between calls must be usable under autograd.
    image = torch.rand(1, 1, 23, 29, requires_grad=True)
    tcwarp.gaussian_smooth(image, 9.0).sum().backward()
    # Reflected at the borders, each pixel is shared out whole.
    assert_close(image.grad, torch.ones_like(image), "gradient", atol=1e-5)


# ---------------------------------------------------------------------------------- smoothing


@pytest.mark.parametrize("boundary", ["reflect", "constant"])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.7, 12.0, 50.0, 300.0])
@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_gaussian_smooth_equals_scipy(device, modes_by, boundary, sigma, dtype, atol):
    image = np.random.default_rng(0).normal(size=(2, 2, 45, 62))
    tensor = torch.from_numpy(image).to(device, dtype)
    smoothed = tcwarp.gaussian_smooth(tensor, sigma, boundary=boundary)
    assert smoothed.dtype == dtype
    expected = [
        [ndimage.gaussian_filter(plane, sigma, truncate=8, mode=boundary) for plane in sample]
        for sample in image
    ]
    assert_close(smoothed, np.array(expected), "gaussian_smooth", atol=atol)


@pytest.mark.parametrize("boundary", ["reflect", "constant"])
@pytest.mark.parametrize(
    "size, sigma",
    [
        ((9, 14, 11), (0.5, 2.0, 30.0)),
        ((1, 40), (3.0, 0.7)),
        ((33,), 2.5),
        ((1, 1), 2.0),
        ((5, 40, 90), (0, 2.0, 9.0)),
        ((7, 6), 0),
    ],
)
def test_gaussian_smooth_in_other_dimensions(device, modes_by, boundary, size, sigma):
    image = np.random.default_rng(1).normal(size=(1, 1, *size))
    tensor = torch.from_numpy(image).to(device)
    expected = ndimage.gaussian_filter(image[0, 0], sigma, truncate=8, mode=boundary)
    smoothed = tcwarp.gaussian_smooth(tensor, sigma, boundary=boundary)
    assert_close(smoothed[0, 0], expected, "gaussian_smooth", atol=1e-12)
    expected = reference.gaussian_smooth(image, sigma, boundary=boundary)
    assert_close(smoothed, expected, "gaussian_smooth", atol=1e-12)


@pytest.mark.parametrize("boundary", ["reflect", "constant"])
@pytest.mark.parametrize(
    "size, sigma",
    [
        ((1, 100_000), (1.0, 70.8)),
        pytest.param((300_000,), 2000.0, marks=pytest.mark.slow),  # SciPy's filter takes long
    ],
)
def test_long_axes_equal_scipy(boundary, size, sigma):
    image = np.random.default_rng(2).normal(size=(1, 1, *size))
    smoothed = tcwarp.gaussian_smooth(torch.from_numpy(image), sigma, boundary=boundary)
    expected = ndimage.gaussian_filter(image[0, 0], sigma, truncate=8, mode=boundary)
    assert_close(smoothed[0, 0], expected, "gaussian_smooth", atol=1e-12)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is counted in KiB there")
def test_memory_grows_with_the_result():
    """These took 164 GB, 6.3 GiB and 6.6 GiB."""
    result = python(
        "-c",
        "import resource, torch, tcwarp\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = peak()\n"
        "tcwarp.random_displacement(1, (1, 1_000_000), sigma=100.0)\n"
        "tcwarp.random_displacement(1, (16, 40_000), sigma=10.0)\n"
        "tcwarp.gaussian_smooth(torch.rand(1, 1, 1, 100_000), 70.8)\n"
        "tcwarp.gaussian_smooth(torch.rand(1, 1, 200_000), 1e15, boundary='constant')\n"
        "print(peak() - before)",
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 300  # MiB


@pytest.mark.parametrize("boundary", ["reflect", "constant"])
@pytest.mark.parametrize("sigma", [0.6, 3.0, (2.0, 5.0), (0.0, 3.0)])
def test_nan_and_infinities_reach_as_far_as_in_scipy(device, modes_by, boundary, sigma):
    image = np.random.default_rng(3).normal(size=(60, 90))
    image[5, 80], image[30, 40], image[34, 44], image[50, 3] = np.nan, np.inf, -np.inf, -np.inf
    tensor = torch.from_numpy(image)[None, None].to(device)
    smoothed = tcwarp.gaussian_smooth(tensor, sigma, boundary=boundary)[0, 0]
    with np.errstate(invalid="ignore"):
        expected = ndimage.gaussian_filter(image, sigma, truncate=8, mode=boundary)
    assert_close(smoothed, expected, "gaussian_smooth", atol=1e-12)


def test_an_infinity_reaches_everywhere_where_sigma_is_beyond_all_integers(device):
    image = torch.tensor([[[1.0, torch.inf, 2.0]]], device=device)
    assert tcwarp.gaussian_smooth(image, 1e30).isposinf().all()


@pytest.mark.parametrize("sigma", [0.5, 2.0, 5.0, 40.0])
def test_smoothed_values_stay_in_the_range_of_their_image(device, modes_by, sigma):
    image = (torch.rand(2, 3, 64, 64, device=device) > 0.5).float()
    image[0, 0], image[0, 1] = 1, 0
    smoothed = tcwarp.gaussian_smooth(image, sigma)
    assert smoothed.min() >= 0
    assert smoothed.max() <= 1
    assert torch.equal(smoothed[0, :2], image[0, :2])


def test_gaussian_smooth_keeps_a_constant_and_the_mean():
    constant = torch.full((1, 1, 30, 30), 3.25, dtype=torch.float64)
    assert_close(tcwarp.gaussian_smooth(constant, 7.0), constant, "gaussian_smooth", atol=1e-12)
    image = torch.rand(1, 1, 30, 30, dtype=torch.float64)
    smoothed = tcwarp.gaussian_smooth(image, 7.0)
    assert smoothed.mean().item() == pytest.approx(image.mean().item(), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gaussian_smooth_in_half_precision_is_the_rounded_one(dtype):
    image = torch.rand(1, 2, 20, 20).to(dtype)
    for sigma, boundary in itertools.product((0.7, 20.0), ("reflect", "constant")):
        smoothed = tcwarp.gaussian_smooth(image, sigma, boundary=boundary)
        single = tcwarp.gaussian_smooth(image.float(), sigma, boundary=boundary)
        assert_bits_equal(smoothed, single.to(dtype), "gaussian_smooth")


def test_finite_images_of_half_precision_are_not_searched_for_infinities(monkeypatch):
    """Their sum is beyond half precision; the search took four times as long as the rest."""
    monkeypatch.delattr("tcwarp.smoothing._infinities")
    image = torch.ones(1, 1, 300, 300, dtype=torch.float16)
    assert image.sum().isinf()
    assert torch.equal(tcwarp.gaussian_smooth(image, 3.0), image)


@pytest.mark.parametrize("boundary", ["reflect", "constant"])
@pytest.mark.parametrize("sigma", [0.6, 5.0])
def test_gaussian_smooth_gradient(modes_by, boundary, sigma):
    image = torch.rand(1, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: tcwarp.gaussian_smooth(x, sigma, boundary=boundary), (image,)
    )


def test_smoothing_and_drawing_do_not_change_under_autocast(device):
    image = torch.rand(1, 2, 40, 40, device=device)
    plain = tcwarp.gaussian_smooth(image, 8.0)
    field = tcwarp.random_displacement(
        1, (40, 40), sigma=8.0, generator=generator(1), device=device
    )
    with torch.autocast(device, dtype=torch.bfloat16):
        assert_bits_equal(tcwarp.gaussian_smooth(image, 8.0), plain, "gaussian_smooth")
        again = tcwarp.random_displacement(
            1, (40, 40), sigma=8.0, generator=generator(1), device=device
        )
        assert_bits_equal(again, field, "random_displacement")


def test_gaussian_smooth_of_strided_and_empty_input(device):
    image = torch.rand(2, 3, 12, 14, device=device)
    expected = tcwarp.gaussian_smooth(image, 2.0)
    last = image.to(memory_format=torch.channels_last)
    assert_close(tcwarp.gaussian_smooth(last, 2.0), expected, "gaussian_smooth", atol=1e-6)
    assert tcwarp.gaussian_smooth(image[:0], 2.0).shape == (0, 3, 12, 14)


# ------------------------------------------------------------------------------ module form


def test_random_elastic_moves_images_and_labels_alike(device):
    labels = (torch.rand(2, 1, 24, 24, device=device) < 0.5).to(torch.uint8)
    elastic = tcwarp.RandomElastic(mode="nearest", sigma=5.0, displacement_std=3.0)
    image, moved = elastic(labels.float(), labels, generator=generator(4, device))
    assert moved.dtype == torch.uint8
    assert_close(image, moved.float(), "RandomElastic", atol=0)
    assert not moved.equal(labels)
    again = elastic(labels, generator=generator(4, device))
    assert_bits_equal(again, moved, "RandomElastic")


def test_drawing_compiles_without_a_break():
    def draw():
        return tcwarp.random_displacement(2, (16, 24), sigma=4.0, displacement_std=1.0)

    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    torch.manual_seed(5)
    expected = draw()
    torch.manual_seed(5)
    assert torch.equal(compiled(), expected)


def test_a_gaussian_of_any_width_leaves_the_mean():
    image = torch.rand(1, 1, 8, 9, dtype=torch.float64)
    smooth = tcwarp.gaussian_smooth(image, 1e9)
    assert_close(smooth, image.mean().expand_as(smooth).numpy(), "gaussian_smooth", atol=1e-12)
    field = tcwarp.random_displacement(1, (8, 9), sigma=1e30, displacement_std=2.0)
    assert_close(field, field[:, :, :1, :1].expand_as(field).numpy(), "field", atol=1e-6)


@pytest.mark.parametrize("sigma", [15.9, 16.1, 1e3, 1e9, 1e18, 1e300])
def test_zeros_outside_of_a_gaussian_of_any_width(sigma):
    """Also of one so wide that its taps would not fit into memory."""
    image = np.random.default_rng(5).normal(size=(1, 1, 9, 12))
    smoothed = tcwarp.gaussian_smooth(torch.from_numpy(image), sigma, boundary="constant")
    if sigma < 1e4:
        expected = ndimage.gaussian_filter(image[0, 0], sigma, truncate=8, mode="constant")
    else:  # flat: the sum of all pixels times the middle of the Gaussian, along both axes
        expected = np.full((9, 12), image.sum() / sigma / sigma / (2 * math.pi))
    assert_close(smoothed[0, 0], expected, "gaussian_smooth", atol=1e-13)


def test_numpy_integers_and_tiny_sigmas():
    size, sigma = np.array([8, 9]), np.array([2.0, 3.0])
    field = tcwarp.random_displacement(np.int64(2), size, sigma=sigma)
    assert field.shape == (2, 2, 8, 9)
    noise = tcwarp.random_displacement(40, (8, 8), sigma=5e-324, displacement_std=5.0)
    assert noise.std().item() == pytest.approx(5, rel=0.1)  # a Gaussian of no width: white noise


def test_bases_do_not_live_on_the_default_device():
    with torch.device("meta"):
        field = tcwarp.random_displacement(1, (11, 10), sigma=2.75, device="cpu")
    assert field.device.type == "cpu"
