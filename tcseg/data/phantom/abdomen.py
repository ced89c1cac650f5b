"""Procedural volumes of the upper abdomen with four structures, made from a seed.

Axes are (z, y, x): towards the head, towards the back, towards the patient's left. Positions and
lengths are in mm from the middle of the field of view, so nothing but noise and the softness of
edges depends on the size. Each structure is a *depth*: a function of position that is positive
inside the structure, zero on its surface and about the distance to it. A mask is ``depth > 0``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from tcseg.data.phantom.radiograph import ramp

Array = NDArray[Any]  # float32, one value per voxel

CLASSES = ("liver", "kidneys", "spine", "aorta")
"""Structures of the abdomen, in the order of their masks."""

COUNT = 48
FIELD_OF_VIEW_MM = 288.0
EDGE_MM = 4.0  # how far the scanner blurs an edge

# Grey of a tissue: lowest and highest among patients, deviation among its parts in one.
_GREYS = {
    "fat": (0.15, 0.35, 0.03),
    "muscle": (0.38, 0.5, 0.02),
    "air": (0.03, 0.1, 0.01),
    "gut": (0.4, 0.6, 0.1),
    "blood": (0.42, 0.9, 0.05),
    "liver": (0.4, 0.7, 0.03),
    "bile": (0.2, 0.4, 0.03),
    "kidney": (0.45, 0.85, 0.02),
    "bone": (0.5, 0.85, 0.0),
}
# Tissue of what is drawn, each over those before it. Most is not of ``CLASSES``, but looks alike.
_DRAWN = {
    "body": "fat", "wall": "muscle", "cavity": "fat", "lungs": "air", "back": "muscle",
    "psoas": "muscle", "bowel 0": "gut", "bowel 1": "gut", "bowel 2": "gut", "stomach": "gut",
    "spleen": "liver", "cava": "blood", "liver": "liver", "gall bladder": "bile",
    "left kidney": "kidney", "right kidney": "kidney", "spine": "bone", "aorta": "blood",
}  # fmt: skip


def make_volume(
    index: int, size: int, *, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Make one volume.

    Parameters
    ----------
    index
        Its number; volume `index` of `seed` is always the same one.
    size
        Depth, height and width in voxels; changes the resolution, not the anatomy.
    seed
        Number of the population.

    Returns
    -------
    image : uint8 (size, size, size)
        Air dark; the grey level of each organ differs between patients.
    masks : bool (4, size, size, size)
        One mask per structure of ``CLASSES``; they overlap by little.
    """
    rng = np.random.default_rng([seed, index])
    axis = ((np.arange(size) + 0.5) / size).astype(np.float32)
    position = _position(rng, axis)
    trunk = _trunk(rng, axis, position)
    depths = trunk | _organs(rng, axis, position, trunk)
    # One structure: from a patch near the middle, left and right look alike.
    depths["kidneys"] = np.maximum(depths["left kidney"], depths["right kidney"])
    value = _scan(rng, axis, position, depths)
    noise = np.random.default_rng([seed, index, size])
    value += rng.uniform(0.02, 0.05) * noise.standard_normal(value.shape, dtype=np.float32)
    image = (255 * np.clip(value, 0, 1) + 0.5).astype(np.uint8)
    return image, np.stack([depths[name] for name in CLASSES]) > 0


def _smooth(rng: np.random.Generator, axis: Array, modes: int) -> Array:
    """Smooth noise, a sum of cosines; of unit variance but for its mean over all positions."""
    frequency = np.arange(modes)
    cosines = np.cos(np.pi * axis[:, None] * frequency).astype(np.float32)
    squares = frequency[:, None, None] ** 2 + frequency[:, None] ** 2 + frequency**2
    spectrum = np.exp(-2 * squares / modes**2)
    spectrum /= np.sqrt((spectrum**2).sum() / 8)
    values = (rng.normal(size=squares.shape) * spectrum).astype(np.float32)
    for _ in range(3):  # sum over the first axis, and put the positions last
        values = np.tensordot(values, cosines, (0, 1))
    return values


def _position(rng: np.random.Generator, axis: Array) -> Array:
    """Anatomical coordinates (z, y, x) of the voxels in mm: a patient's build and placement."""
    grid = FIELD_OF_VIEW_MM * (np.stack(np.meshgrid(axis, axis, axis, indexing="ij")) - 0.5)
    grid -= rng.normal(0, (8, 6, 5))[:, None, None, None]
    turn = Rotation.from_rotvec(np.deg2rad(rng.normal(0, 4, 3))).as_matrix()
    scale = np.exp(rng.normal(0.06, 0.05) + rng.normal(0, 0.04, 3))
    bend = np.stack([_smooth(rng, axis, 4) for _ in range(3)])
    matrix = (turn / scale[:, None]).astype(np.float32)
    return np.asarray(np.tensordot(matrix, grid, 1) + 5 * bend, dtype=np.float32)


def _ellipsoid(
    rng: np.random.Generator,
    position: Array,
    centre: tuple[float, float, float],
    radii: tuple[float, float, float],
    *,
    tilt: tuple[float, float, float] = (0, 0, 0),
    jitter: float = 5.0,
) -> Array:
    """Depth in an ellipsoid that is moved, turned and stretched at random; `tilt` in degrees."""
    turn = Rotation.from_rotvec(np.deg2rad(tilt + rng.normal(0, 6, 3))).as_matrix()
    stretched = np.multiply(radii, np.exp(rng.normal(0, 0.09, 3)))
    matrix = (turn / stretched[:, None]).astype(np.float32)
    middle = (centre + rng.normal(0, jitter, 3)).astype(np.float32)
    offset = position - middle[:, None, None, None]
    unit = np.tensordot(matrix, offset, 1)
    radius = np.sqrt(np.einsum("i...,i...", unit, unit)) + 1e-3
    return np.asarray(np.sqrt(np.einsum("i...,i...", offset, offset)) * (1 / radius - 1))


def _trunk(rng: np.random.Generator, axis: Array, position: Array) -> dict[str, Array]:
    """Depths of the body's layers, of lungs, muscles, spine and vessels."""
    z, y, x = position
    body = 84 - np.hypot(84 / 124 * x, 84 / 92 * y) + 2 * _smooth(rng, axis, 6)
    wall = body - rng.uniform(8, 22)
    cavity = wall - rng.uniform(8, 12)
    dome = rng.normal(100, 7) - ((np.abs(x) - 50) / 11) ** 2 - (y / 14) ** 2 - z
    diaphragm = dome + 2 * _smooth(rng, axis, 6)
    lungs = np.minimum.reduce([cavity + 6, -diaphragm, np.abs(x) - 30])

    # The spine's curve along the body; the vessels lie on its front.
    phase, sway = rng.uniform(-0.6, 0.6), rng.normal(0, 4)
    middle_y = 42 + rng.normal(0, 4) - rng.uniform(4, 10) * np.cos(np.pi * z / 130 + phase)
    y, x = y - middle_y, x - sway * np.sin(np.pi * z / 150 + 3 * phase)
    bone, vessel = rng.normal(25, 2), rng.normal(13.5, 1.3)
    spine = bone - np.hypot(x, 1.1 * y) + _smooth(rng, axis, 6)
    bend = rng.normal(0, 3) * np.sin(np.pi * z / 110 + rng.uniform(0, 6))
    before = y + bone + 0.75 * vessel
    aorta = vessel - np.hypot(x - rng.normal(9, 3) - bend, before)
    cava = rng.normal(12, 1.5) - np.hypot(x + rng.normal(22, 3), before + bend)
    back = np.minimum(26 - np.hypot(np.abs(x) - 34, 1.2 * (y - 34)), wall)
    flank = np.clip(30 - z, 0, 90) / 5  # the psoas grows downwards, and leaves the spine
    psoas = np.minimum(flank, 18) - np.hypot(np.abs(x) - 30 - flank, y)
    layers = {"body": body, "wall": wall, "cavity": cavity, "lungs": lungs, "diaphragm": diaphragm}
    return layers | {"back": back, "psoas": psoas, "cava": cava, "spine": spine, "aorta": aorta}


def _organs(
    rng: np.random.Generator, axis: Array, position: Array, trunk: dict[str, Array]
) -> dict[str, Array]:
    """Depths of the organs of the abdomen."""
    z, y, x = position
    cavity = trunk["cavity"]
    organs = {}
    for number in range(3):
        loops = 20 * (_smooth(rng, axis, 9) - 0.9)
        organs[f"bowel {number}"] = np.minimum.reduce([loops, cavity, 20 - y, 30 - z])
    stomach = _ellipsoid(rng, position, (36, -26, 52), (34, 30, 34), jitter=8)
    spleen = _ellipsoid(rng, position, (42, 30, 84), (44, 34, 21), tilt=(8, 15, 0))
    for side, sign, height in (("left", 1, -18), ("right", -1, -32)):
        middle, tilt = (height, 30, 60 * sign), (0, -10 * sign, 0)
        bean = _ellipsoid(rng, position, middle, (47, 25, 26), tilt=tilt, jitter=6)
        hilum = _ellipsoid(rng, position, (height, 21, 35 * sign), (15, 14, 17), jitter=3)
        organs[f"{side} kidney"] = np.minimum(bean + 1.5 * _smooth(rng, axis, 6), -hilum)
    liver = _ellipsoid(rng, position, (45, -8, -46), (66, 68, 72))
    under = z + 5 - 0.55 * (x + 40) - 0.25 * y + rng.normal(0, 8)
    liver = np.minimum(liver, under) + 2 * _smooth(rng, axis, 6)
    gall = _ellipsoid(rng, position, (12, -48, -38), (22, 14, 14))
    liver = np.minimum.reduce([liver, cavity, trunk["diaphragm"] - 2, -stomach, -gall])
    # The kidney and the spine reach into it by a little: there the masks overlap.
    reach = [5 - organs["right kidney"], 5 - trunk["spine"], -trunk["aorta"]]
    organs |= {"liver": np.minimum.reduce([liver, *reach]), "gall bladder": gall}
    return organs | {"stomach": stomach, "spleen": np.minimum(spleen, cavity)}


def _scan(
    rng: np.random.Generator, axis: Array, position: Array, depths: dict[str, Array]
) -> Array:
    """Grey values in about [0, 1] without noise: soft edges, texture, shading."""
    edge = float(np.hypot(EDGE_MM, FIELD_OF_VIEW_MM / len(axis)))  # a voxel averages over its width
    levels = {tissue: rng.uniform(low, high) for tissue, (low, high, _) in _GREYS.items()}
    cortex, discs, length = rng.normal(0, 0.06), rng.uniform(0, 0.2), rng.uniform(26, 34)
    value = np.full_like(position[0], 0.02)
    for name, tissue in _DRAWN.items():
        level: Any = rng.normal(levels[tissue], _GREYS[tissue][2])
        if tissue == "kidney":
            level = level + cortex * (1 - 2 * ramp(depths[name] - 8, 6))
        elif tissue == "bone":
            level = level - discs * ramp(np.cos(2 * np.pi / length * position[0]) - 0.7, 0.4)
        value += ramp(depths[name], edge) * (level - value)
    value *= 1 + rng.uniform(0.01, 0.04) * _smooth(rng, axis, 14)
    return np.asarray(value * np.exp(rng.uniform(0.03, 0.15) * _smooth(rng, axis, 3)))
