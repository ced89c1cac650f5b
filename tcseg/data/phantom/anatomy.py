"""Anatomy of the phantom: where its five structures lie, drawn at random.

Lengths are relative to the field of view (the unit square, y down), so nothing here depends on the
image size. Each structure is a *depth*: a function of position that is positive inside the
structure, zero on its outline and about the distance to it. A mask is ``depth > 0``. The shapes
were chosen after the averages of the SCR outlines. "t" is the distance from the midline, counted
towards one side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline, PchipInterpolator

Array = NDArray[Any]  # float32, one value per pixel
SIDES = ("left", "right")  # the patient's

# Lung outlines: distance from the midline against q = sqrt(relative height), which rounds the apex.
_LUNG_Q = (0.0, 0.16, 0.30, 0.47, 0.645, 0.82, 1.0)
_LATERAL = (0.16, 0.23, 0.285, 0.33, 0.362, 0.383, 0.40)
_MEDIAL = {
    "right": (0.16, 0.098, 0.075, 0.072, 0.08, 0.09, 0.09),
    "left": (0.16, 0.092, 0.062, 0.086, 0.07, 0.09, 0.20),
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


@dataclass(frozen=True)
class Anatomy:
    """One patient, sampled at the pixels: coordinates and depths, by side where there are two."""

    y: Array
    x: Array  # from the midline to the image's right, which is the patient's left
    heart: Array
    domes: dict[str, Array]  # height y of the diaphragm
    lungs: dict[str, Array]
    clavicles: dict[str, Array]  # the outlined part
    bones: dict[str, Array]  # the whole clavicle, which goes on to the shoulder

    def towards(self, side: str) -> Array:
        """Return the distance from the midline, positive on the given side."""
        return self.x if side == "left" else -self.x

    def masks(self) -> NDArray[np.bool_]:
        """Return bool (5, size, size) in the order of ``CLASSES``."""
        lungs, clavicles = self.lungs, self.clavicles
        depths = [lungs[s] for s in SIDES] + [self.heart] + [clavicles[s] for s in SIDES]
        return np.stack(depths) > 0


def draw_anatomy(rng: np.random.Generator, size: int) -> Anatomy:
    """Draw a patient and their position, sampled at `size` x `size` pixels."""
    y, x = _coordinates(rng, size)
    heart = _heart(rng, y, x)
    breath = rng.normal(0, 0.03)  # deep inspiration lowers the diaphragm
    tilt = rng.normal(0, 0.12)  # height of the shoulders
    anatomy = Anatomy(y, x, heart, {}, {}, {}, {})
    for side, shift in zip(SIDES, (0.008, -0.008), strict=True):
        t = anatomy.towards(side)
        dome = profile(rng, t, _DIAPHRAGM_T, _DIAPHRAGM_Y, 0.008) + breath
        anatomy.domes[side] = dome + rng.normal(shift, 0.018)
        anatomy.lungs[side] = _lung(rng, t, y, side, heart, anatomy.domes[side], breath)
        anatomy.clavicles[side], anatomy.bones[side] = _clavicle(rng, t, y, tilt)
    return anatomy


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
    return np.asarray(np.interp(at, nodes, values), dtype=np.float32)


def profile(
    rng: np.random.Generator,
    at: Array,
    nodes: tuple[float, ...],
    values: tuple[float, ...],
    jitter: float,
) -> Array:
    """Evaluate a smooth curve through nodes of which each is moved at random."""
    fine = np.linspace(nodes[0], nodes[-1], 256)
    moved = np.asarray(values) + rng.normal(0, jitter, len(values))
    return _interpolate(at, fine, PchipInterpolator(nodes, moved)(fine))


def _heart(rng: np.random.Generator, y: Array, x: Array) -> Array:
    centre = np.array([0.05, 0.62])
    offset = (_HEART - centre) * np.exp(rng.normal(0, (0.09, 0.08)))
    centre = centre + rng.normal(0, (0.015, 0.025))
    angle = np.unwrap(np.arctan2(offset[:, 1], offset[:, 0]))
    radius = np.hypot(*offset.T) * np.exp(rng.normal(0, 0.025, len(angle)))
    outline = CubicSpline(
        np.append(angle, angle[0] + 2 * np.pi), np.append(radius, radius[0]), bc_type="periodic"
    )
    fine = np.linspace(-np.pi, np.pi, 361)
    dx, dy = x - centre[0], y - centre[1]
    edge = _interpolate(np.arctan2(dy, dx), fine, outline(fine))
    return np.asarray(edge - np.hypot(dx, dy))


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
    lateral = profile(rng, q, _LUNG_Q, _LATERAL, 0.008) - t
    medial = t - profile(rng, q, _LUNG_Q, _MEDIAL[side], 0.006)
    # As in SCR, heart and lung overlap by little.
    return np.asarray(np.minimum.reduce([lateral, medial, dome - y, 0.004 - heart, y - apex]))


def _clavicle(rng: np.random.Generator, t: Array, y: Array, tilt: float) -> tuple[Array, Array]:
    """Depth of the outlined part, and of the whole bone, which goes on to the shoulder."""
    start, end = rng.normal(0.058, 0.01), rng.normal(0.27, 0.012)
    u = (t - start) / (end - start)
    slope = -0.072 + 0.2 * tilt + rng.normal(0, 0.012)
    sag, curl = rng.normal(0.004, 0.006), rng.normal(0.003, 0.003)
    bend = sag * np.sin(np.pi * np.clip(u, 0, 1)) + curl * np.sin(2 * np.pi * np.clip(u, 0, 1.5))
    centre = rng.normal(0.193, 0.012) + slope * u + bend
    half = rng.normal(0.019, 0.0022) * (1 + 0.45 * np.exp(-6 * np.clip(u, 0, 2)) - 0.08 * u)
    cosine = 1 / np.hypot(1, slope / (end - start))
    bone = np.minimum((half - np.abs(y - centre)) * cosine, t - start)
    return np.minimum(bone, end - t), bone
