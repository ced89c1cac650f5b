"""Procedural chest radiographs with five overlapping structures, made from a seed.

Anatomy is drawn in relative coordinates (the field of view is the unit square, y down) and is
independent of the image size. Each structure is a *depth*: a function that is positive inside the
structure, zero on its outline and about the distance to it. A mask is ``depth > 0``; the image is
the attenuation summed along the beam, so structures shine through each other as in a projection.

As in JSRT, the patient's right side is on the left of the image. Lengths were chosen after the
averages of the SCR outlines.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.interpolate import CubicSpline, PchipInterpolator

from .dataset import CLASSES, Dataset, pack_masks

Array = NDArray[np.float32]

COUNT = 160
FIELD_OF_VIEW_MM = 0.175 * 2048  # as JSRT

# Lung outlines: distance from the midline against q = sqrt(relative height), which rounds the apex.
_LUNG_Q = (0.0, 0.16, 0.30, 0.47, 0.645, 0.82, 1.0)
_LATERAL = (0.16, 0.23, 0.285, 0.33, 0.362, 0.383, 0.40)
_MEDIAL = {
    "right": (0.16, 0.098, 0.075, 0.072, 0.08, 0.09, 0.09),
    "left": (0.16, 0.092, 0.062, 0.075, 0.07, 0.09, 0.20),
}
# Diaphragm: height against distance from the midline.
_DIAPHRAGM_T = (0.0, 0.09, 0.17, 0.25, 0.33, 0.39, 0.45)
_DIAPHRAGM_Y = (0.745, 0.725, 0.715, 0.73, 0.775, 0.84, 0.90)
# Heart outline (x from the midline, y), clockwise from its upper right corner.
_HEART = np.array(
    [(-0.06, 0.47), (0.0, 0.447), (0.07, 0.452), (0.13, 0.51), (0.19, 0.60), (0.235, 0.68),
     (0.25, 0.725), (0.22, 0.752), (0.12, 0.765), (0.0, 0.762), (-0.08, 0.74), (-0.115, 0.67),
     (-0.115, 0.59), (-0.10, 0.52)]
)  # fmt: skip
# Half width of the body against height: neck, shoulders, chest.
_BODY_Y = (0.0, 0.04, 0.08, 0.13, 0.2, 0.35, 0.5, 0.7, 1.0)
_BODY_T = (0.15, 0.19, 0.33, 0.47, 0.56, 0.56, 0.50, 0.475, 0.465)


def load(size: int, *, count: int = COUNT, seed: int = 0) -> Dataset:
    """Make `count` phantoms of `size` x `size` pixels; number i does not depend on `count`."""
    pairs = [make_phantom(index, size, seed=seed) for index in range(count)]
    return Dataset(
        name="phantom",
        ids=[f"phantom{index:03d}" for index in range(count)],
        classes=CLASSES,
        images=torch.from_numpy(np.stack([image for image, _ in pairs])[:, None]),
        masks=torch.stack([pack_masks(masks) for _, masks in pairs]),
        spacing=FIELD_OF_VIEW_MM / size,
    )


def make_phantom(
    index: int, size: int, *, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Make one phantom.

    Parameters
    ----------
    index
        Its number; phantom `index` of `seed` is always the same one.
    size
        Height and width in pixels; changes the resolution, not the anatomy.
    seed
        Number of the population.

    Returns
    -------
    image : uint8 (size, size)
        Bone bright, air dark.
    masks : bool (5, size, size)
        One mask per structure of ``CLASSES``; they overlap.
    """
    rng = np.random.default_rng([seed, index])
    y, x = _coordinates(rng, size)
    sides = {"right": -x, "left": x}

    heart = _heart(rng, y, x)
    breath = rng.normal(0, 0.03)  # deep inspiration lowers the diaphragm
    domes = {
        side: _profile(rng, t, _DIAPHRAGM_T, _DIAPHRAGM_Y, 0.008) + breath + rng.normal(shift, 0.018)
        for (side, t), shift in zip(sides.items(), (-0.008, 0.008), strict=True)
    }
    lungs = {
        side: _lung(rng, t, y, side, heart, domes[side], breath) for side, t in sides.items()
    }
    tilt = rng.normal(0, 0.12)  # of both clavicles: the height of the shoulders
    clavicles = {side: _clavicle(rng, t, y, tilt) for side, t in sides.items()}

    attenuation = _attenuation(rng, y, x, sides, lungs, heart, domes, clavicles)
    image = _expose(rng, attenuation, np.random.default_rng([seed, index, size]))
    depths = (lungs["left"], lungs["right"], heart, clavicles["left"][0], clavicles["right"][0])
    return image, np.stack([depth > 0 for depth in depths])


# ---- geometry -------------------------------------------------------------------------------


def _coordinates(rng: np.random.Generator, size: int) -> tuple[Array, Array]:
    """Anatomical coordinates of the pixels: y down, x to the image's right from the midline."""
    axis = ((np.arange(size) + 0.5) / size).astype(np.float32)
    modes = np.arange(5)
    cosines = np.cos(np.pi * axis[:, None] * modes)
    falloff = 0.016 / (1 + modes[:, None] ** 2 + modes**2)
    bend_y, bend_x = (cosines @ (rng.normal(size=(5, 5)) * falloff) @ cosines.T for _ in range(2))

    angle = np.deg2rad(rng.normal(0, 3))
    scale = np.exp(rng.normal(0, 0.06))
    aspect = np.exp(rng.normal(0, 0.045))
    shift_y, shift_x = rng.normal(0, (0.025, 0.02))
    v, u = axis[:, None] - 0.5 - shift_y, axis[None, :] - 0.5 - shift_x
    y = (np.cos(angle) * v - np.sin(angle) * u) / (scale * aspect) + 0.5 + bend_y
    x = (np.sin(angle) * v + np.cos(angle) * u) / (scale / aspect) + bend_x
    return y.astype(np.float32), x.astype(np.float32)


def _interpolate(at: Array, nodes: NDArray, values: NDArray) -> Array:
    return np.interp(at, nodes, values).astype(np.float32)


def _profile(
    rng: np.random.Generator,
    at: Array,
    nodes: tuple[float, ...],
    values: tuple[float, ...],
    jitter: float,
) -> Array:
    """Smooth curve through nodes of which each is moved at random."""
    fine = np.linspace(nodes[0], nodes[-1], 256)
    moved = np.asarray(values) + rng.normal(0, jitter, len(values))
    return _interpolate(at, fine, PchipInterpolator(nodes, moved)(fine))


def _heart(rng: np.random.Generator, y: Array, x: Array) -> Array:
    centre = np.array([0.05, 0.62])
    offset = (_HEART - centre) * np.exp(rng.normal(0, (0.09, 0.08)))
    centre = centre + rng.normal(0, (0.015, 0.025))
    angle = np.unwrap(np.arctan2(offset[:, 1], offset[:, 0]))
    radius = np.hypot(*offset.T) * np.exp(rng.normal(0, 0.035, len(angle)))
    outline = CubicSpline(
        np.append(angle, angle[0] + 2 * np.pi), np.append(radius, radius[0]), bc_type="periodic"
    )
    fine = np.linspace(-np.pi, np.pi, 361)
    dx, dy = x - centre[0], y - centre[1]
    return _interpolate(np.arctan2(dy, dx), fine, outline(fine)) - np.hypot(dx, dy).astype("f4")


def _lung(
    rng: np.random.Generator,
    t: Array,
    y: Array,
    side: str,
    heart: Array,
    dome: Array,
    breath: float,
) -> Array:
    apex, base = rng.normal(0.08, 0.012), 0.85 + breath
    q = np.sqrt(np.clip((y - apex) / (base - apex), 0, 1))
    t = t / np.exp(rng.normal(0, 0.04))
    lateral = _profile(rng, q, _LUNG_Q, _LATERAL, 0.008) - t
    medial = t - _profile(rng, q, _LUNG_Q, _MEDIAL[side], 0.006)
    return np.minimum.reduce([lateral, medial, dome - y, 0.004 - heart, y - apex])


def _clavicle(
    rng: np.random.Generator, t: Array, y: Array, tilt: float
) -> tuple[Array, Array]:
    """Depth of the outlined part, and of the whole bone, which goes on to the shoulder."""
    start, end = rng.normal(0.052, 0.01), rng.normal(0.272, 0.014)
    u = (t - start) / (end - start)
    slope = -0.072 + 0.2 * tilt + rng.normal(0, 0.012)
    sag, curl = rng.normal(0.004, 0.006), rng.normal(0.003, 0.003)
    bend = sag * np.sin(np.pi * np.clip(u, 0, 1)) + curl * np.sin(2 * np.pi * np.clip(u, 0, 1.5))
    centre = rng.normal(0.193, 0.012) + slope * u + bend
    half = rng.normal(0.019, 0.0022) * (1 + 0.45 * np.exp(-6 * np.clip(u, 0, 2)) - 0.08 * u)
    cosine = 1 / np.hypot(1, slope / (end - start))
    bone = np.minimum((half - np.abs(y - centre)) * cosine, t - start)
    return np.minimum(bone, end - t), np.minimum(bone, 0.42 - t)


# ---- attenuation ----------------------------------------------------------------------------


def _dome(depth: Array, reach: float) -> Array:
    """Thickness of a rounded body: 0 at its outline, 1 from `reach` inside."""
    return np.sqrt(np.clip(depth / reach, 0, 1))


def _ramp(depth: Array, width: float) -> Array:
    """Soft step from 0 to 1 of the given width about the outline."""
    step = np.clip(depth / width + 0.5, 0, 1)
    return step * step * (3 - 2 * step)


def _blob(y: Array, x: Array, at: tuple[float, float], radius: tuple[float, float]) -> Array:
    return np.exp(-(((y - at[0]) / radius[0]) ** 2) - ((x - at[1]) / radius[1]) ** 2)


def _texture(rng: np.random.Generator, size: int, cells: int) -> Array:
    """Smooth noise of unit variance at its `cells` x `cells` nodes, any image size."""
    nodes = rng.normal(size=(cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(nodes).resize((size, size), Image.Resampling.BICUBIC))


def _ribs(rng: np.random.Generator, t: Array, y: Array) -> Array:
    """Shadows of the posterior ribs (falling outwards) and of the fainter anterior ones."""
    total = np.zeros_like(y)
    for slope, curve, spacing, strength in ((-0.25, 2.2, 0.074, 1.0), (-0.75, 0.5, 0.088, 0.6)):
        slope, spacing = slope + rng.normal(0, 0.06), spacing * np.exp(rng.normal(0, 0.06))
        phase = (y - slope * t - curve * t * t) / spacing + rng.uniform()
        across = np.abs(phase - np.floor(phase) - 0.5)  # 0 at the middle of a rib
        width = rng.uniform(0.2, 0.28)
        edge = np.exp(-(((across - width) / 0.05) ** 2))  # cortical bone
        total += strength * (_ramp(width - across, 0.1) + 0.5 * edge)
    return total


def _vessels(rng: np.random.Generator, y: Array, t: Array) -> Array:
    """Streaks that radiate from the hilum."""
    dy, dt = y - rng.normal(0.44, 0.02), t - rng.normal(0.085, 0.01)
    angle, radius = np.arctan2(dy, dt), np.hypot(dy, dt)
    streaks = np.zeros_like(y)
    for frequency in (5, 9, 14, 21):
        swirl = rng.normal(0, 6) * radius + rng.uniform(0, 2 * np.pi)
        streaks += np.cos(frequency * angle + swirl + 3 * np.cos(25 * radius + rng.uniform(0, 6)))
    hilum = np.exp(-((radius / 0.07) ** 2))
    return np.clip(streaks, 0, None) * np.exp(-radius / 0.13) * 0.5 + hilum


def _attenuation(
    rng: np.random.Generator,
    y: Array,
    x: Array,
    sides: dict[str, Array],
    lungs: dict[str, Array],
    heart: Array,
    domes: dict[str, Array],
    clavicles: dict[str, tuple[Array, Array]],
) -> Array:
    """Total attenuation along the beam, in units of the soft tissue of the chest."""
    size = len(y)
    t = np.abs(x)
    air_contrast, bone = rng.uniform(0.42, 0.72), np.exp(rng.normal(0, 0.3))

    body = _profile(rng, y, _BODY_Y, _BODY_T, 0.015) * np.exp(rng.normal(0, 0.05)) - t
    total = 0.95 * _dome(body, rng.uniform(0.08, 0.2))
    total *= 1 + 0.06 * _texture(rng, size, 6)
    cage = _ramp(0.41 - t, 0.04) * _ramp(y - 0.06, 0.05) * _ramp(0.85 - y, 0.2)
    for side, s in sides.items():
        inside = _ramp(lungs[side], 0.008)
        abdomen = _ramp(y - domes[side], 0.012) * _ramp(s, 0.04)
        air = _dome(lungs[side], 0.11) * (1 + 0.08 * _texture(rng, size, 9))
        total -= air_contrast * np.exp(rng.normal(0, 0.08)) * (0.35 * inside + 0.65 * air)
        total += rng.uniform(0.2, 0.4) * abdomen
        vessels = _vessels(rng, y, s) * (0.25 + 0.75 * inside) * _ramp(s, 0.1)
        total += rng.uniform(0.06, 0.14) * vessels
        ribs = _ribs(rng, s, y) * cage * _ramp(s - 0.03, 0.02)
        total += 0.055 * bone * ribs * (0.4 + 0.6 * inside)
        whole = clavicles[side][1]
        cortex = np.exp(-(((whole - 0.004) / 0.005) ** 2))
        total += bone * (0.17 * _ramp(whole, 0.006) + 0.08 * cortex)
        scapula = 0.36 + 0.25 * (y - 0.2) - s
        total += 0.1 * bone * _ramp(-scapula, 0.03) * np.exp(-(((y - 0.25) / 0.14) ** 2))

    mediastinum = _profile(rng, y, (0.0, 0.2, 0.3, 0.5, 1.0), (0.05, 0.06, 0.07, 0.08, 0.09), 0.006)
    total += rng.uniform(0.2, 0.4) * _ramp(mediastinum - t, 0.03)
    knob = _blob(y, x, (rng.normal(0.28, 0.015), 0.055), (0.045, 0.04))
    total += rng.uniform(0.1, 0.35) * knob
    total += rng.uniform(0.2, 0.45) * (0.5 * _ramp(heart, 0.01) + 0.5 * _dome(heart, 0.1))
    discs = 1 + 0.3 * np.cos(2 * np.pi * y / rng.uniform(0.045, 0.06))
    total += 0.16 * bone * _ramp(rng.uniform(0.032, 0.042) - t, 0.012) * discs
    trachea = _ramp(rng.uniform(0.016, 0.024) - np.abs(x + rng.normal(0, 0.006)), 0.012)
    total -= rng.uniform(0.12, 0.3) * trachea * _ramp(0.32 - y, 0.06)
    total *= _ramp(body, 0.01)
    total += _distractors(rng, y, x, lungs, domes) + rng.uniform(0, 0.15)
    return np.clip(total, 0, None).astype(np.float32)


def _distractors(
    rng: np.random.Generator,
    y: Array,
    x: Array,
    lungs: dict[str, Array],
    domes: dict[str, Array],
) -> Array:
    """What some patients have and others not: stomach gas, breasts, opacities, devices."""
    extra = np.zeros_like(y)
    if rng.random() < 0.6:  # gas below the left diaphragm
        at = rng.normal(0.80, 0.02), rng.normal(0.17, 0.04)
        bubble = _blob(y, x, at, (rng.uniform(0.02, 0.05), rng.uniform(0.03, 0.08)))
        extra -= rng.uniform(0.15, 0.5) * bubble * _ramp(y - domes["left"] - 0.01, 0.01)
    if rng.random() < 0.4:  # breasts
        radius, height, weight = rng.uniform(0.13, 0.2), rng.normal(0.68, 0.04), rng.uniform(0.1, 0.25)
        for middle in (-0.24, 0.24):
            depth = radius - np.hypot(x - middle, 0.9 * (y - height))
            extra += weight * _dome(depth, 0.15)
    for side, sign in (("right", -1), ("left", 1)):
        inside = _ramp(lungs[side], 0.02)
        if rng.random() < 0.25:  # consolidation with a soft edge
            at = rng.uniform(0.3, 0.75), sign * rng.uniform(0.12, 0.36)
            patch = _blob(y, x, at, tuple(rng.uniform(0.05, 0.14, 2)))
            extra += rng.uniform(0.1, 0.35) * patch * inside
        for _ in range(rng.poisson(0.35)):  # nodules
            at = rng.uniform(0.15, 0.75), sign * rng.uniform(0.1, 0.36)
            radius = rng.uniform(0.008, 0.025)
            extra += rng.uniform(0.08, 0.25) * _blob(y, x, at, (radius, radius))
    if rng.random() < 0.25:  # a line: catheter, lead or wire
        phase, slope, bend = rng.uniform(0, 6), rng.normal(0, 0.5), rng.uniform(0.02, 0.1)
        path = rng.normal(0, 0.2) + slope * (y - 0.4) + bend * np.sin(7 * y + phase)
        extra += rng.uniform(0.15, 0.4) * _ramp(rng.uniform(0.002, 0.004) - np.abs(x - path), 0.006)
    if rng.random() < 0.2:  # collar
        rim = np.abs(np.hypot(x / 1.5, y + 0.02) - rng.uniform(0.1, 0.16))
        extra += rng.uniform(0.08, 0.2) * _ramp(0.008 - rim, 0.008)
    if rng.random() < 0.1:  # pacemaker
        at = rng.uniform(0.2, 0.3), rng.choice((-1, 1)) * rng.uniform(0.2, 0.3)
        box = 0.04 - np.maximum(np.abs(x - at[1]), 1.3 * np.abs(y - at[0]))
        extra += 0.8 * _ramp(box, 0.01)
    return extra


# ---- exposure -------------------------------------------------------------------------------


def _expose(
    rng: np.random.Generator, attenuation: Array, noise: np.random.Generator
) -> NDArray[np.uint8]:
    """Film of an attenuation: scatter, characteristic curve, noise, labels."""
    size = len(attenuation)
    value = 1 - np.exp(-rng.uniform(1.0, 2.1) * attenuation)
    # Scatter is so wide that a coarse grid carries it.
    coarse = Image.fromarray(value.astype(np.float32)).resize((16, 16), Image.Resampling.BOX)
    veil = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    value += rng.uniform(0.0, 0.35) * (veil - value)

    low, high = rng.uniform(-0.05, 0.2), rng.uniform(0.88, 1.05)
    value = np.clip((value - low) / (high - low), 0, 1) ** np.exp(rng.normal(0, 0.3))
    value *= 1 + rng.normal(0, 0.06) * np.linspace(-1, 1, size)  # heel effect
    value += 0.012 * _texture(rng, size, 24)
    grain = rng.uniform(0.006, 0.025) * min(1.0, size / 256)  # averages out in coarse pixels
    value += grain * noise.standard_normal((size, size), dtype=np.float32)

    for corner in (slice(None), slice(None, None, -1)):  # blackened name plates
        if rng.random() < 0.5:
            height, start, width = rng.uniform(0.02, 0.09), rng.uniform(0, 0.12), rng.uniform(0.1, 0.2)
            columns = slice(round(start * size), round((start + width) * size))
            value[: round(height * size), corner][:, columns] = 0
    return (255 * np.clip(value, 0, 1) + 0.5).astype(np.uint8)
