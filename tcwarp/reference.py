"""The specification of tcwarp in plain NumPy: slow, short and without torch.

Every function does what its namesake in :mod:`tcwarp` does, on arrays and in double precision, in
two and three dimensions. Conventions are those of the package: a displacement is (N, D, *spatial)
in pixels, component k along spatial axis k, and warps pull, ``warp(I, u)(x) = I(x + u(x))``.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: Finite displacements are clamped to this many pixels either way, so that indices stay integers.
LARGEST_DISPLACEMENT = 2.0**30


def pad_index(index: int, size: int, padding_mode: str) -> int:
    """Return where the sample ``index`` of an axis of ``size`` pixels is read, or -1 if nowhere.

    ``"zeros"`` reads nothing outside, ``"border"`` repeats the edge pixel, and ``"reflection"`` is
    half-sample symmetric (d c b a | a b c d | d c b a).
    """
    if padding_mode == "zeros":
        return index if 0 <= index < size else -1
    if padding_mode == "border":
        return min(max(index, 0), size - 1)
    if padding_mode == "reflection":
        index %= 2 * size
        return index if index < size else 2 * size - 1 - index
    raise ValueError(f"padding_mode must be zeros, border or reflection, got {padding_mode!r}")


def nearest_offset(displacement: float) -> int:
    """Round a displacement half up, exactly: 0.49999997 in single precision gives 0."""
    below = math.floor(displacement)
    return below + 1 if displacement - below >= 0.5 else below


def _taps(
    vector: Array, position: Sequence[int], size: Sequence[int], mode: str, padding_mode: str
) -> Iterator[tuple[tuple[int, ...], float]]:
    """Yield (index, weight) of each pixel that ``position`` reads through its displacement."""
    if mode not in ("nearest", "linear"):
        raise ValueError(f"mode must be nearest, linear or cubic, got {mode!r}")
    if not np.isfinite(vector).all():
        return
    clamped = np.clip(vector, -LARGEST_DISPLACEMENT, LARGEST_DISPLACEMENT)
    per_axis = []
    for x, u, n in zip(position, clamped, size, strict=True):
        if mode == "nearest":
            candidates = [(x + nearest_offset(u), 1.0)]
        else:
            # The displacement is split, never the position: the fraction keeps all its digits.
            below = np.floor(u)
            base, fraction = x + int(below), u - below
            candidates = [(base, float(1 - fraction)), (base + 1, float(fraction))]
        per_axis.append([(pad_index(i, n, padding_mode), weight) for i, weight in candidates])
    for combination in itertools.product(*per_axis):
        index = tuple(i for i, _ in combination)
        weight = math.prod(w for _, w in combination)
        # A tap of weight zero is not read: an infinite neighbour must not turn into NaN.
        if weight != 0 and -1 not in index:
            yield index, weight


#: Pixels by which an axis is continued before the spline through it is made. What is missing
#: beyond them is felt to half of them, 0.268^30 is 1e-17, and so is the border itself.
CUBIC_MARGIN = 60


def cubic_weights(fraction: float) -> list[float]:
    """Return the cubic B-spline at the four pixels around a position, from floor - 1 on."""
    rest = 1 - fraction
    return [
        rest**3 / 6,
        (4 - 6 * fraction**2 + 3 * fraction**3) / 6,
        (4 - 6 * rest**2 + 3 * rest**3) / 6,
        fraction**3 / 6,
    ]


@functools.lru_cache(maxsize=256)
def cubic_coefficients(size: int, padding_mode: str) -> Array:
    """Return the spline coefficients (size + 2 CUBIC_MARGIN, size) of each unit image of an axis.

    With them, ``(c[x - 1] + 4 c[x] + c[x + 1]) / 6`` is the pixel x of the continued image.
    """
    numpy_mode = {"zeros": "constant", "border": "edge", "reflection": "symmetric"}[padding_mode]
    margins = ((CUBIC_MARGIN, CUBIC_MARGIN), (0, 0))
    continued = np.pad(np.eye(size), margins, numpy_mode)  # type: ignore[call-overload]
    n = len(continued)
    return np.asarray(
        np.linalg.solve((4 * np.eye(n) + np.eye(n, k=1) + np.eye(n, k=-1)) / 6, continued)
    )


def _cubic_row(displacement: float, position: int, size: int, padding_mode: str) -> Array:
    """Return the share of each pixel of an axis in the spline at ``position + displacement``."""
    below = math.floor(displacement)
    taps = range(position + below - 1, position + below + 3)
    if padding_mode == "reflection":
        index = [pad_index(i, size, padding_mode) for i in taps]
    else:
        reach = CUBIC_MARGIN // 2
        index = [min(max(i, -reach), size - 1 + reach) for i in taps]
    coefficients = cubic_coefficients(size, padding_mode)
    weights = np.array(cubic_weights(displacement - below))
    return np.asarray(weights @ coefficients[np.array(index) + CUBIC_MARGIN])


def _cubic_share(
    vector: Array, position: Sequence[int], size: Sequence[int], padding_mode: str
) -> Array | None:
    """Return the share of each pixel of an image in one output pixel, None for no share."""
    if not np.isfinite(vector).all():
        return None
    clamped = np.clip(vector, -LARGEST_DISPLACEMENT, LARGEST_DISPLACEMENT)
    share = np.ones(())
    for u, x, n in zip(clamped, position, size, strict=True):
        if (clamped == np.floor(clamped)).all():  # the spline goes through the pixels
            row = np.zeros(n)
            source = pad_index(x + int(u), n, padding_mode)
            if source >= 0:
                row[source] = 1
        else:
            row = _cubic_row(float(u), x, n, padding_mode)
        share = np.multiply.outer(share, row)
    return np.asarray(share)


def _own_precision(displacement: Array) -> Array:
    """Half precision is widened before any arithmetic; single and double stay."""
    return displacement.astype(np.promote_types(displacement.dtype, np.float32))


def warp(
    input: Array, displacement: Array, mode: str = "nearest", padding_mode: str = "zeros"
) -> Array:
    """Read ``input`` (N, C, *image) at ``x + displacement(x)``; give (N, C, *spatial).

    One displacement for all samples is (1, D, *spatial). Pixels whose displacement is NaN or
    infinite are 0 under every padding mode.
    """
    displacement = _own_precision(displacement)
    size, grid = input.shape[2:], displacement.shape[2:]
    output = np.zeros((*input.shape[:2], *grid), dtype=input.dtype)
    displacement = np.broadcast_to(displacement, (len(input), *displacement.shape[1:]))
    for n, position in itertools.product(range(len(input)), np.ndindex(grid)):
        vector = displacement[(n, slice(None), *position)]
        if mode == "cubic":
            share = _cubic_share(vector, position, size, padding_mode)
            if share is not None:
                # What has no share is not read: infinity would turn into NaN.
                values = input[n][:, share != 0] * share[share != 0]
                output[(n, slice(None), *position)] = np.add.reduce(values, -1, initial=-0.0)
            continue
        taps = list(_taps(vector, position, size, mode, padding_mode))
        for c in range(input.shape[1]):
            if mode == "nearest":
                for index, _ in taps:
                    output[(n, c, *position)] = input[(n, c, *index)]
            elif taps:
                # Not `sum`, which starts at +0 and so loses the sign of -0.
                first, *others = (weight * float(input[(n, c, *index)]) for index, weight in taps)
                for term in others:
                    first += term
                output[(n, c, *position)] = first
    return output


def warp_backward(
    grad_output: Array,
    displacement: Array,
    mode: str = "nearest",
    padding_mode: str = "zeros",
    size: Sequence[int] | None = None,
) -> Array:
    """Send each value of ``grad_output`` (N, C, *spatial) back to where :func:`warp` read it.

    ``size`` is that of the image, the displacement's unless given.
    """
    displacement = _own_precision(displacement)
    grid = grad_output.shape[2:]
    size = grid if size is None else size
    grad_input = np.zeros((*grad_output.shape[:2], *size), dtype=np.float64)
    displacement = np.broadcast_to(displacement, (len(grad_output), *displacement.shape[1:]))
    for n, position in itertools.product(range(len(grad_output)), np.ndindex(grid)):
        vector = displacement[(n, slice(None), *position)]
        if mode == "cubic":
            share = _cubic_share(vector, position, size, padding_mode)
            if share is not None:
                gradient = grad_output[(n, slice(None), *position)].astype(np.float64)
                grad_input[n] += np.multiply.outer(gradient, share)
            continue
        for index, weight in _taps(vector, position, size, mode, padding_mode):
            for c in range(grad_output.shape[1]):
                grad_input[(n, c, *index)] += weight * float(grad_output[(n, c, *position)])
    return grad_input.astype(grad_output.dtype)


def compose(first: Array, second: Array) -> Array:
    """Return the displacement of ``first``, then ``second``: second(x) + first(x + second(x))."""
    return second + warp(first, second, mode="linear", padding_mode="border")


def _sample(field: Array, position: Array) -> Array:
    """Interpolate ``field`` (D, *spatial) linearly at a real position, clamped at the border."""
    if not np.isfinite(position).all():
        return np.full(len(field), np.nan)
    below = np.floor(position)
    value = np.zeros(len(field))
    for corner in itertools.product((0, 1), repeat=len(position)):
        weight = 1.0
        index: list[Any] = [slice(None)]
        for step, base, x, n in zip(corner, below, position, field.shape[1:], strict=True):
            weight *= x - base if step else 1 - (x - base)
            index.append(pad_index(int(base) + step, n, "border"))
        value += weight * field[tuple(index)]
    return value


def align(t1: Array, t2: Array) -> tuple[Array, Array]:
    """Solve ``y + t1(y) = x + t2(x)`` for y by plain fixed-point iteration.

    Converges where the Lipschitz constant of ``t1`` is below 1. NaN stays NaN.

    Returns
    -------
    displacement : array (N, D, *spatial)
        y - x.
    residual : array (N, *spatial)
        The largest component of ``|y + t1(y) - x - t2(x)|`` in pixels: not small where t1 folds.
    """
    displacement = np.zeros(t1.shape)
    residual = np.zeros((len(t1), *t1.shape[2:]))
    for n, x in itertools.product(range(len(t1)), np.ndindex(t1.shape[2:])):
        target = np.asarray(x) + t2[(n, slice(None), *x)].astype(np.float64)
        field = t1[n].astype(np.float64)
        y = target - _sample(field, target)
        for _ in range(200):
            previous, y = y, target - _sample(field, y)
            if not np.abs(y - previous).max() > 1e-13:  # so written that NaN ends it
                break
        displacement[(n, slice(None), *x)] = y - np.asarray(x)
        residual[(n, *x)] = np.abs(y + _sample(field, y) - target).max()
    return displacement, residual


def invert(displacement: Array) -> tuple[Array, Array]:
    """Return the inverse displacement and its residual: ``align(displacement, 0)``."""
    return align(displacement, np.zeros(displacement.shape))


def jacobian_determinant(displacement: Array) -> Array:
    """Return the determinant (N, *spatial) of the Jacobian of ``x + displacement(x)``.

    Central differences inside, one-sided ones at the border, none along an axis of one pixel.
    """
    batch, dimensions, *size = displacement.shape
    jacobian = np.zeros((batch, *size, dimensions, dimensions))
    for row, column in np.ndindex(dimensions, dimensions):
        if size[column] > 1:
            component = displacement[:, row].astype(np.float64)
            jacobian[..., row, column] = np.gradient(component, axis=1 + column)
    return np.asarray(np.linalg.det(jacobian + np.eye(dimensions)))


def valid_mask(displacement: Array, mode: str = "nearest") -> Array:
    """Return where (N, *spatial) every pixel that :func:`warp` reads is inside the image."""
    size = displacement.shape[2:]
    valid = np.zeros((len(displacement), *size), dtype=bool)
    for n, position in itertools.product(range(len(displacement)), np.ndindex(size)):
        vector = displacement[(n, slice(None), *position)]
        if np.isfinite(vector).all():
            if mode == "nearest":
                inside = [
                    0 <= x + nearest_offset(u) < m
                    for x, u, m in zip(position, vector, size, strict=True)
                ]
            else:
                inside = [
                    -x <= u <= m - 1 - x for x, u, m in zip(position, vector, size, strict=True)
                ]
            valid[(n, *position)] = all(inside)
    return valid


def _per_axis(sigma: float | Sequence[float], dimensions: int) -> list[float]:
    return [float(sigma)] * dimensions if np.isscalar(sigma) else list(sigma)  # type: ignore[arg-type]


def _gaussian_weights(sigma: float) -> Array:
    """Return a sampled Gaussian at offsets 0 to ``int(8 sigma + 1/2)``, SciPy's radius."""
    radius = int(8 * sigma + 0.5)
    weights = np.array([math.exp(-0.5 * (j / sigma) ** 2) if j else 1.0 for j in range(radius + 1)])
    return np.asarray(weights / (weights[0] + 2 * weights[1:].sum()))


def gaussian_smooth(
    input: Array, sigma: float | Sequence[float], *, boundary: str = "reflect"
) -> Array:
    """Convolve the spatial axes of ``input`` (N, C, *spatial) with a Gaussian of ``sigma`` pixels.

    ``boundary`` is ``"reflect"`` (half-sample symmetric) or ``"constant"`` (0 outside).
    """
    padding_mode = {"reflect": "reflection", "constant": "zeros"}[boundary]
    output = input.astype(np.float64)
    for axis, axis_sigma in enumerate(_per_axis(sigma, input.ndim - 2), start=2):
        lines = np.moveaxis(output, axis, 0)
        smoothed = np.zeros_like(lines)
        weights = _gaussian_weights(axis_sigma)
        for x in range(len(lines)):
            for offset in range(1 - len(weights), len(weights)):
                source = pad_index(x + offset, len(lines), padding_mode)
                if source >= 0:
                    smoothed[x] += weights[abs(offset)] * lines[source]
        output = np.moveaxis(smoothed, 0, axis)
    return output


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the four 32-bit words of Philox 4x32-10 for a counter of four words and a key of two.

    Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (2011).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & 0xFFFFFFFF,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & 0xFFFFFFFF,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def field_coefficients(
    seed: int, batch: int, modes: Sequence[int], identity_probability: float = 0.0
) -> Array:
    """Draw the standard normal coefficients (batch, D, *modes) of a random field, float64.

    A coefficient depends on seed, sample, mode and component alone, whatever the number of modes.
    """
    dimensions = len(modes)
    key = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
    coefficients = np.zeros((batch, dimensions, *modes))
    for sample in range(batch):
        draw = philox4x32((0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, sample), key)
        if (draw[0] + 0.5) / 2**32 < identity_probability:
            continue
        for mode in np.ndindex(*modes):
            kx, ky, kz = (*reversed(mode), 0)[:3]
            words = philox4x32((kx, ky, kz, sample), key)
            uniforms = [(word + 0.5) / 2**32 for word in words]
            # Box-Muller; the fourth normal is not needed.
            radius0 = math.sqrt(-2 * math.log(uniforms[0]))
            radius1 = math.sqrt(-2 * math.log(uniforms[2]))
            normals = (
                radius0 * math.cos(2 * math.pi * uniforms[1]),
                radius0 * math.sin(2 * math.pi * uniforms[1]),
                radius1 * math.cos(2 * math.pi * uniforms[3]),
            )
            coefficients[(sample, slice(None), *mode)] = normals[:dimensions]
    return coefficients


def eigenvalues(size: int, sigma: float) -> Array:
    """Return the factor by which smoothing scales each of the ``size`` cosine modes of an axis."""
    weights = _gaussian_weights(sigma)
    offsets = np.arange(1, len(weights))
    return np.array(
        [
            weights[0] + 2 * (weights[1:] * np.cos(math.pi * k * offsets / size)).sum()
            for k in range(size)
        ]
    )


def random_displacement(
    seed: int,
    batch: int,
    size: Sequence[int],
    *,
    magnitude: float = 1000.0,
    sigma: float | Sequence[float] = 100.0,
    displacement_std: float | None = None,
    identity_probability: float = 0.0,
) -> Array:
    """Draw fields (batch, D, *size) with the covariance of smoothed U(-magnitude, magnitude) noise.

    ``displacement_std`` (pixels), if given, sets the root mean square of a component instead.
    """
    axes = list(zip(size, _per_axis(sigma, len(size)), strict=True))
    if displacement_std is None:
        scale = magnitude / math.sqrt(3)
    else:
        # Mean over the field of the variance that coefficients of variance 1 give.
        variance = math.prod(float((eigenvalues(n, s) ** 2).sum()) / n for n, s in axes)
        scale = displacement_std / math.sqrt(variance)
    field = scale * field_coefficients(seed, batch, size, identity_probability)
    for axis, (n, axis_sigma) in enumerate(axes, start=2):
        k, x = np.arange(n)[:, None], np.arange(n)
        basis = np.sqrt(np.where(k > 0, 2, 1) / n) * np.cos(math.pi * k * (x + 0.5) / n)
        scaled = eigenvalues(n, axis_sigma)[:, None] * basis
        field = np.moveaxis(np.tensordot(field, scaled, axes=(axis, 0)), -1, axis)
    return field
