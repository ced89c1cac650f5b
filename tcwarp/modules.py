"""The operators as modules."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

from ._checks import check_number, check_sigma, check_tensor, lookup
from ._native import MODES, PADDING_MODES, Mode, PaddingMode
from .fields import random_displacement
from .points import warp_points
from .warping import is_zero, warp

FIELD_ARGUMENTS = ("magnitude", "sigma", "displacement_std", "identity_probability")


class Warp(nn.Module):
    """Module form of `tcwarp.warp`.

    Parameters
    ----------
    mode, padding_mode : str
        As in `tcwarp.warp`.
    padding_value : float or sequence of float
        As in `tcwarp.warp`.

    Examples
    --------
    >>> layer = tcwarp.Warp(mode="linear", padding_mode="border")
    >>> layer(torch.rand(1, 3, 8, 8), torch.zeros(1, 2, 8, 8)).shape
    torch.Size([1, 3, 8, 8])
    """

    def __init__(
        self,
        *,
        mode: Mode = "nearest",
        padding_mode: PaddingMode = "zeros",
        padding_value: float | Sequence[float] = 0.0,
    ) -> None:
        super().__init__()
        lookup("Warp", "mode", mode, MODES)
        lookup("Warp", "padding_mode", padding_mode, PADDING_MODES)
        if padding_mode != "zeros" and not is_zero(padding_value):
            raise ValueError(
                f"Warp: padding_value is for padding_mode 'zeros', got {padding_mode!r}"
            )
        self.mode = mode
        self.padding_mode = padding_mode
        self.padding_value = padding_value

    if TYPE_CHECKING:

        def __call__(self, input: Tensor, displacement: Tensor) -> Tensor:
            """Do as `forward`; `nn.Module` would say Any."""

    def forward(self, input: Tensor, displacement: Tensor) -> Tensor:
        """Warp input (N, C, *spatial) by displacement (N, D, *spatial)."""
        return warp(
            input,
            displacement,
            mode=self.mode,
            padding_mode=self.padding_mode,
            padding_value=self.padding_value,
        )

    def extra_repr(self) -> str:
        """Show the settings."""
        value = "" if is_zero(self.padding_value) else f", padding_value={self.padding_value}"
        return f"mode={self.mode!r}, padding_mode={self.padding_mode!r}{value}"


class RandomElastic(nn.Module):
    """Deform a batch elastically, and its labels with it, by one random field per sample.

    Parameters
    ----------
    mode : {"linear", "cubic", "nearest"}
        How floating tensors are interpolated; all others (labels) are copied by nearest.
    padding_mode : str
        As in `tcwarp.warp`.
    **field
        Arguments of `tcwarp.random_displacement`: magnitude, sigma, displacement_std,
        identity_probability.

    Examples
    --------
    >>> deform = tcwarp.RandomElastic(sigma=8.0, displacement_std=2.0)
    >>> image, label = deform(torch.rand(2, 1, 32, 32), torch.ones(2, 1, 32, 32, dtype=torch.uint8))
    >>> label.dtype
    torch.uint8

    Landmarks move with their image:

    >>> image, points = deform(torch.rand(2, 1, 32, 32), points=torch.full((2, 3, 2), 16.0))
    >>> points.shape
    torch.Size([2, 3, 2])
    """

    def __init__(
        self, *, mode: Mode = "linear", padding_mode: PaddingMode = "border", **field: Any
    ) -> None:
        super().__init__()
        lookup("RandomElastic", "mode", mode, MODES)
        lookup("RandomElastic", "padding_mode", padding_mode, PADDING_MODES)
        unknown = sorted(set(field) - set(FIELD_ARGUMENTS))
        if unknown:
            raise TypeError(
                f"RandomElastic: field arguments must be among {', '.join(FIELD_ARGUMENTS)}, "
                f"got {', '.join(unknown)}"
            )
        check_sigma("RandomElastic", field.get("sigma", 1.0), 2, 3)
        for name, most in (
            ("magnitude", math.inf),
            ("displacement_std", math.inf),
            ("identity_probability", 1.0),
        ):
            if field.get(name) is not None:
                check_number("RandomElastic", name, field[name], at_most=most)
        self.mode = mode
        self.padding_mode = padding_mode
        self.field = field

    if TYPE_CHECKING:

        @overload
        def __call__(
            self, tensor: Tensor, /, *, generator: torch.Generator | None = None
        ) -> Tensor: ...
        @overload
        def __call__(
            self,
            first: Tensor,
            second: Tensor,
            /,
            *others: Tensor,
            generator: torch.Generator | None = None,
        ) -> tuple[Tensor, ...]: ...
        @overload
        def __call__(
            self,
            *tensors: Tensor,
            points: Tensor,
            generator: torch.Generator | None = None,
        ) -> tuple[Tensor, ...]: ...
        def __call__(
            self,
            *tensors: Tensor,
            points: Tensor | None = None,
            generator: torch.Generator | None = None,
        ) -> Tensor | tuple[Tensor, ...]:
            """Do as `forward`; `nn.Module` would say Any."""

    def forward(
        self,
        *tensors: Tensor,
        points: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Return the deformed tensors (N, C, *spatial), all by the same fields.

        With `points` (N, P, D), in pixels, also where those are then (`tcwarp.warp_points`), last.
        """
        if not tensors:
            raise TypeError("RandomElastic: at least one tensor must be given, got none")
        for tensor in tensors:
            check_tensor("RandomElastic", "every argument", tensor)
        image = tensors[0]
        if image.dim() not in (4, 5):
            raise ValueError(
                "RandomElastic: every argument must have shape (N, C, H, W) or (N, C, D, H, W), "
                f"got {tuple(image.shape)}"
            )
        for tensor in tensors[1:]:
            if (tensor.shape[0], tensor.shape[2:]) != (image.shape[0], image.shape[2:]):
                raise ValueError(
                    "RandomElastic: all arguments must have the batch and the spatial size of the "
                    f"first, {tuple(image.shape)}, got {tuple(tensor.shape)}"
                )
        displacement = random_displacement(
            image.shape[0],
            image.shape[2:],
            generator=generator,
            dtype=torch.float64 if image.dtype == torch.float64 else torch.float32,
            device=image.device,
            **self.field,
        )
        warped = tuple(
            warp(
                tensor,
                displacement,
                mode=self.mode if tensor.is_floating_point() else "nearest",
                padding_mode=self.padding_mode,
            )
            for tensor in tensors
        )
        if points is not None:
            return *warped, warp_points(points, displacement)
        return warped[0] if len(warped) == 1 else warped

    def extra_repr(self) -> str:
        """Show the settings."""
        field = "".join(f", {name}={value}" for name, value in self.field.items())
        return f"mode={self.mode!r}, padding_mode={self.padding_mode!r}{field}"
