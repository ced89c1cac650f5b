"""From anatomy to film: attenuation of the beam, and what exposure makes of it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tcseg.data.phantom.anatomy import SIDES, Anatomy, Array, profile

# Half width of the body against height: neck, shoulders, chest.
_BODY_Y = (0.0, 0.04, 0.08, 0.13, 0.2, 0.35, 0.5, 0.7, 1.0)
_BODY_T = (0.15, 0.19, 0.33, 0.47, 0.56, 0.56, 0.50, 0.475, 0.465)


def _dome(depth: Array, reach: float) -> Array:
    """Thickness of a rounded body: 0 at its outline, 1 from `reach` inside."""
    return np.asarray(np.sqrt(np.clip(depth / reach, 0, 1)))


def ramp(depth: Array, width: float) -> Array:
    """Soft step from 0 to 1 of the given width about the outline."""
    step = np.clip(depth / width + 0.5, 0, 1)
    return np.asarray(step * step * (3 - 2 * step))


def _blob(y: Array, x: Array, at: tuple[float, float], radius: tuple[float, float]) -> Array:
    squares = ((y - at[0]) / radius[0]) ** 2 + ((x - at[1]) / radius[1]) ** 2
    return np.asarray(np.exp(-squares))


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
        total += strength * (ramp(width - across, 0.1) + 0.5 * edge)
    return total


def _vessels(rng: np.random.Generator, y: Array, t: Array) -> Array:
    """Streaks that radiate from the hilum."""
    dy, dt = y - rng.normal(0.44, 0.02), t - rng.normal(0.085, 0.01)
    angle, radius = np.arctan2(dy, dt), np.hypot(dy, dt)
    streaks = np.zeros_like(y)
    for frequency in (5, 9, 14, 21):
        swirl = rng.normal(0, 6) * radius + rng.uniform(0, 2 * np.pi)
        streaks += np.cos(frequency * angle + swirl + 3 * np.cos(25 * radius + rng.uniform(0, 6)))
    hilum = np.exp(-((radius / 0.06) ** 2))
    branches = 0.5 * np.clip(streaks, 0, None) * np.exp(-radius / 0.13)
    return np.asarray(branches * (1 - hilum) + hilum)


def attenuation(rng: np.random.Generator, anatomy: Anatomy) -> Array:
    """Sum the attenuation along the beam, in units of the soft tissue of the chest."""
    y, x, heart = anatomy.y, anatomy.x, anatomy.heart
    size = len(y)
    t = np.abs(x)
    air_contrast, bone = rng.uniform(0.42, 0.72), np.exp(rng.normal(0, 0.3))

    body = profile(rng, y, _BODY_Y, _BODY_T, 0.015) * np.exp(rng.normal(0, 0.05)) - t
    chest_wall = 0.03
    body = np.maximum.reduce([body, *(anatomy.lungs[side] + chest_wall for side in SIDES)])
    total = 0.95 * _dome(body, rng.uniform(0.08, 0.2))
    total *= 1 + 0.06 * _texture(rng, size, 6)
    cage = ramp(0.41 - t, 0.04) * ramp(y - 0.06, 0.05) * ramp(0.85 - y, 0.2)
    for side in SIDES:
        s, lung = anatomy.towards(side), anatomy.lungs[side]
        inside = ramp(lung, 0.008)
        abdomen = ramp(y - anatomy.domes[side], 0.012) * ramp(s, 0.04)
        air = _dome(lung, 0.11) * (1 + 0.08 * _texture(rng, size, 9))
        total -= air_contrast * np.exp(rng.normal(0, 0.08)) * (0.35 * inside + 0.65 * air)
        total += rng.uniform(0.2, 0.4) * abdomen
        vessels = _vessels(rng, y, s) * (0.25 + 0.75 * inside) * ramp(s, 0.1)
        total += rng.uniform(0.08, 0.2) * vessels
        ribs = _ribs(rng, s, y) * cage * ramp(s - 0.03, 0.02)
        total += 0.055 * bone * ribs * (0.4 + 0.6 * inside)
        clavicle = anatomy.bones[side]
        cortex = np.exp(-(((clavicle - 0.004) / 0.005) ** 2))
        shoulder = ramp(0.39 - s, 0.1)
        total += bone * (0.17 * ramp(clavicle, 0.006) + 0.08 * cortex) * shoulder
        scapula = 0.36 + 0.25 * (y - 0.2) - s
        total += 0.1 * bone * ramp(-scapula, 0.03) * np.exp(-(((y - 0.25) / 0.14) ** 2))

    mediastinum = profile(rng, y, (0.0, 0.2, 0.3, 0.5, 1.0), (0.05, 0.06, 0.07, 0.08, 0.09), 0.006)
    total += rng.uniform(0.2, 0.4) * ramp(mediastinum - t, 0.03)
    knob = _blob(y, x, (rng.normal(0.28, 0.015), 0.055), (0.045, 0.04))
    total += rng.uniform(0.1, 0.35) * knob
    total += rng.uniform(0.2, 0.45) * (0.5 * ramp(heart, 0.01) + 0.5 * _dome(heart, 0.1))
    discs = 1 + 0.3 * np.cos(2 * np.pi * y / rng.uniform(0.045, 0.06))
    total += 0.16 * bone * ramp(rng.uniform(0.032, 0.042) - t, 0.012) * discs
    trachea = ramp(rng.uniform(0.016, 0.024) - np.abs(x + rng.normal(0, 0.006)), 0.012)
    total -= rng.uniform(0.12, 0.3) * trachea * ramp(0.32 - y, 0.06)
    total *= ramp(body, 0.01)
    total += _distractors(rng, anatomy) + rng.uniform(0, 0.15)
    return np.clip(total, 0, None).astype(np.float32)


def _distractors(rng: np.random.Generator, anatomy: Anatomy) -> Array:
    """Draw what only some patients have: stomach gas, breasts, opacities, devices."""
    y, x = anatomy.y, anatomy.x
    extra = np.zeros_like(y)
    if rng.random() < 0.6:  # gas below the left diaphragm
        at = rng.normal(0.80, 0.02), rng.normal(0.17, 0.04)
        bubble = _blob(y, x, at, (rng.uniform(0.02, 0.05), rng.uniform(0.03, 0.08)))
        extra -= rng.uniform(0.15, 0.5) * bubble * ramp(y - anatomy.domes["left"] - 0.01, 0.01)
    if rng.random() < 0.4:  # breasts
        radius, height = rng.uniform(0.13, 0.2), rng.normal(0.68, 0.04)
        weight = rng.uniform(0.1, 0.25)
        for middle in (-0.24, 0.24):
            depth = radius - np.hypot(x - middle, 0.9 * (y - height))
            extra += weight * _dome(depth, 0.15)
    for side, sign in zip(SIDES, (1, -1), strict=True):
        inside = ramp(anatomy.lungs[side], 0.02)
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
        extra += rng.uniform(0.15, 0.4) * ramp(rng.uniform(0.002, 0.004) - np.abs(x - path), 0.006)
    if rng.random() < 0.2:  # collar
        rim = np.abs(np.hypot(x / 1.5, y + 0.02) - rng.uniform(0.1, 0.16))
        extra += rng.uniform(0.08, 0.2) * ramp(0.008 - rim, 0.008)
    if rng.random() < 0.1:  # pacemaker
        at = rng.uniform(0.2, 0.3), rng.choice((-1, 1)) * rng.uniform(0.2, 0.3)
        box = 0.04 - np.maximum(np.abs(x - at[1]), 1.3 * np.abs(y - at[0]))
        extra += 0.8 * ramp(box, 0.01)
    return extra


def expose(rng: np.random.Generator, attenuation: Array, noise: np.random.Generator) -> Array:
    """Expose a film: scatter, characteristic curve, noise, name plates.

    The grain is drawn from `noise`, as it alone takes as many numbers as there are pixels.

    Returns
    -------
    NDArray
        float32 (size, size) in [0, 1].
    """
    size = len(attenuation)
    value = 1 - np.exp(-rng.uniform(1.0, 2.1) * attenuation)
    # Scatter is so wide that a coarse grid carries it.
    coarse = Image.fromarray(value.astype(np.float32)).resize((16, 16), Image.Resampling.BOX)
    veil = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    value += rng.uniform(0.0, 0.35) * (veil - value)

    low, high = rng.uniform(-0.05, 0.2), rng.uniform(0.88, 1.05)
    value = np.clip((value - low) / (high - low), 0, 1) ** np.exp(rng.normal(0, 0.3))
    value *= 1 + rng.normal(0, 0.06) * np.linspace(-1, 1, size)  # heel effect
    value += 0.008 * _texture(rng, size, 24)
    grain = rng.uniform(0.006, 0.025) * min(1.0, size / 256)  # averages out in coarse pixels
    value += grain * noise.standard_normal((size, size), dtype=np.float32)

    for corner in (slice(None), slice(None, None, -1)):  # blackened name plates
        if rng.random() < 0.5:
            height, width = rng.uniform(0.02, 0.09), rng.uniform(0.1, 0.2)
            start = rng.uniform(0, 0.12)
            columns = slice(round(start * size), round((start + width) * size))
            value[: round(height * size), corner][:, columns] = 0
    return np.asarray(np.clip(value, 0, 1), dtype=np.float32)
