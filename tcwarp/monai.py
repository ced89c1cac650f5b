"""Elastic deformation as a MONAI dictionary transform, with its inverse; needs MONAI.

`pip install "tcwarp[monai]"` installs it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ._checks import check_number, check_probability, check_sigma, lookup
from ._native import MODES, PADDING_MODES, Mode, PaddingMode
from .algebra import invert
from .fields import random_displacement
from .points import displaced, warp_points
from .warping import warp

try:
    from monai.config import KeysCollection
    from monai.data.meta_obj import get_track_meta
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms import InvertibleTransform, MapTransform, RandomizableTransform
    from monai.utils import TransformBackends, convert_to_tensor, ensure_tuple, ensure_tuple_rep
    from monai.utils.enums import TraceKeys
except ModuleNotFoundError as error:
    raise ImportError('MONAI is not installed; run `pip install "tcwarp[monai]"`') from error

__all__ = ["RandElasticd"]


class RandElasticd(RandomizableTransform, MapTransform, InvertibleTransform):
    """Deform images and their labels alike, by one smooth random field.

    Parameters
    ----------
    keys
        Of the items to deform: channel first, (C, H, W) or (C, D, H, W), all of one spatial size,
        else a call raises ValueError.
    sigma : float or sequence of float
        Of the Gaussian that smooths the field, in pixels.
    displacement_std : float
        Root mean square displacement in pixels.
    prob : float
        How often anything is deformed.
    mode : str or sequence of str
        ``"nearest"``, ``"linear"`` or ``"cubic"``, one for all keys or one for each. Labels want
        nearest, which keeps integers as they are.
    padding_mode : str
        ``"border"``, ``"zeros"`` or ``"reflection"``.
    allow_missing_keys : bool
        Whether a key may be absent.
    point_keys : str or sequence of str
        Of items that are landmarks (P, D), in pixels and array order: they move with the images.

    Notes
    -----
    `inverse` warps by the inverse of the field, which is solved for, not stored: items come back
    up to interpolation, and what left the image is lost. A field that folds has no inverse;
    `tcwarp.invert` warns of it.

    Examples
    --------
    >>> transform = RandElasticd(["image", "label"], sigma=8.0, displacement_std=2.0, prob=1.0,
    ...                          mode=["linear", "nearest"])
    >>> data = {"image": torch.rand(1, 64, 64), "label": torch.ones(1, 64, 64, dtype=torch.uint8)}
    >>> back = transform.inverse(transform(data))
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012 (as MONAI declares it)

    def __init__(
        self,
        keys: KeysCollection,
        sigma: float | Sequence[float] = 20.0,
        displacement_std: float = 4.0,
        prob: float = 0.1,
        mode: Mode | Sequence[Mode] = "linear",
        padding_mode: PaddingMode = "border",
        allow_missing_keys: bool = False,
        point_keys: KeysCollection = (),
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.sigma, self.displacement_std = sigma, displacement_std
        self.mode, self.padding_mode = ensure_tuple_rep(mode, len(self.keys)), padding_mode
        for each in self.mode:
            lookup("RandElasticd", "mode", each, MODES)
        lookup("RandElasticd", "padding_mode", padding_mode, PADDING_MODES)
        check_sigma("RandElasticd", sigma, 2, 3)
        check_number("RandElasticd", "displacement_std", displacement_std)
        check_probability("RandElasticd", "prob", prob)
        self.point_keys = ensure_tuple(point_keys)
        self._seed = 0

    def randomize(self, data: Any = None) -> None:
        """Draw whether to deform, and the seed of the field."""
        super().randomize(None)
        self._seed = int(self.R.randint(2**31))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Deform the items of the keys."""
        items = dict(data)
        shapes = {key: tuple(items[key].shape) for key in self.key_iterator(items)}
        came = ", ".join(f"{key!r}: {shape}" for key, shape in shapes.items())
        if not all(len(shape) in (3, 4) for shape in shapes.values()):
            raise ValueError(
                f"RandElasticd: items must have shape (C, H, W) or (C, D, H, W), got {came}"
            )
        if len({shape[1:] for shape in shapes.values()}) > 1:
            raise ValueError(
                "RandElasticd: items must have one spatial size, as one field moves them, "
                f"got {came}"
            )
        self.randomize()
        for key, mode in self.key_iterator(items, self.mode):
            item: Any = convert_to_tensor(items[key], track_meta=get_track_meta())
            if self._do_transform:
                item = self._warp(item, self._field(item, self._seed), mode)
            if get_track_meta():
                self.push_transform(item, extra_info={"seed": self._seed, "mode": mode})
            items[key] = item
        field: Tensor | None = None
        if self._do_transform and self.point_keys and shapes:
            field = self._field(items[next(iter(shapes))], self._seed)
        # Tensors also where they stay: what comes out must not depend on the draw.
        self._move_points(
            items, lambda points: points if field is None else warp_points(points, field)
        )
        return items

    def _move_points(self, items: dict[Hashable, Any], moved: Callable[[Tensor], Tensor]) -> None:
        for key in self.point_keys:
            if key not in items:
                if self.allow_missing_keys:
                    continue
                raise KeyError(
                    f"RandElasticd: key {key!r} of point_keys is missing, got items of "
                    f"{', '.join(map(repr, items))}; allow_missing_keys=True lets it be"
                )
            points: Any = convert_to_tensor(items[key], track_meta=False, wrap_sequence=True)
            if points.dim() != 2 or not points.is_floating_point():
                raise ValueError(
                    f"RandElasticd: points of {key!r} must be a floating array (P, D), got "
                    f"{tuple(points.shape)} of {points.dtype}"
                )
            items[key] = moved(points[None])[0]

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Undo the last deformation of the items of the keys."""
        items = dict(data)
        field: Tensor | None = None
        for key in self.key_iterator(items):
            applied = self.pop_transform(items[key])
            if applied[TraceKeys.DO_TRANSFORM]:
                extra = applied[TraceKeys.EXTRA_INFO]
                field = self._field(items[key], int(extra["seed"]))
                items[key] = self._warp(items[key], invert(field), extra["mode"])
        if field is not None and self.point_keys:
            there = field
            self._move_points(items, lambda points: displaced(points, there))
        return items

    def _field(self, item: Tensor, seed: int) -> Tensor:
        # Drawn on the CPU's generator and made where it is used: one field on every device.
        return random_displacement(
            1,
            tuple(item.shape[1:]),
            sigma=self.sigma,
            displacement_std=self.displacement_std,
            generator=torch.Generator().manual_seed(seed),
            dtype=torch.float32,
            device=item.device,
        )

    def _warp(self, item: Tensor, field: Tensor, mode: Mode) -> Tensor:
        plain = item.as_tensor() if isinstance(item, MetaTensor) else item
        warped = warp(plain[None], field, mode=mode, padding_mode=self.padding_mode)[0]
        if not isinstance(item, MetaTensor):
            return warped
        return MetaTensor(warped, meta=item.meta, applied_operations=item.applied_operations)
