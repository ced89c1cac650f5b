"""The pieces of work that are timed on a GPU, their inputs and their peers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, ops

import tcwarp
from benchmarks import peers
from benchmarks.cuda_timing import Inputs
from tcwarp._native import MODES, Mode

PEERS = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}
PEER_CODES = {"bilinear": 0, "nearest": 1, "bicubic": 2}
WITH_GOALS: tuple[Mode, ...] = ("nearest", "linear")
ZEROS = 0  # the code of padding with zeros, here and in torch


@dataclass(frozen=True)
class Scale:
    """How large the work is, and how often it is timed."""

    planes: tuple[int, ...] = (16, 6, 512, 512)
    volumes: tuple[int, ...] = (1, 4, 128, 128, 128)
    fields: int = 64
    latency: tuple[int, ...] = (1, 1, 64, 64)
    ceiling_bytes: int = 2**31
    rounds: int = 20
    eager_rounds: int = 100


REHEARSAL = Scale((2, 4, 24, 20), (1, 4, 6, 8, 10), 2, (1, 1, 8, 8), 2**10, 1, 1)


@dataclass(frozen=True)
class Peer:
    """What a piece of work is compared with; `prepare` makes its inputs, outside of the clock."""

    call: Callable[..., Any]
    prepare: Callable[..., Inputs] = lambda *inputs: inputs
    times: int = 1  # how often it would be called for the same work


@dataclass(frozen=True)
class Work:
    """One piece of work: an operator, and inputs for it by number."""

    name: str
    call: Callable[..., Any]
    inputs: Callable[[int], Inputs]
    peers: dict[str, Peer] = field(default_factory=dict)
    tolerance: float = 1e-4
    checked: Callable[..., Tensor] | None = None  # where a call draws other numbers each time


def image(
    shape: Sequence[int], last: bool, device: torch.device, number: int, dtype: torch.dtype
) -> Tensor:
    """Return an image whose values differ from pixel to pixel."""
    generator = torch.Generator(device).manual_seed(number)
    values = torch.rand(tuple(shape), generator=generator, device=device)
    values = values.to(dtype) if dtype.is_floating_point else (250 * values).to(dtype)
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    return values.to(memory_format=layout) if last else values


def displacement(shape: Sequence[int], device: torch.device, number: int) -> Tensor:
    """Return smooth fields of 8 pixels for images of a shape."""
    return tcwarp.random_displacement(
        *(shape[0], shape[2:]),
        sigma=40.0,
        displacement_std=8.0,
        generator=torch.Generator().manual_seed(number),
        device=device,
    )


def grid_backward(mode: str, wanted: list[bool], grad: Tensor, image: Tensor, grid: Tensor) -> Any:
    """Return the gradients that are wanted, by image and grid, as autograd calls for them."""
    axes = grid.shape[-1]
    operator = getattr(ops.aten, f"grid_sampler_{axes}d_backward")
    return operator(grad, image, grid, PEER_CODES[mode], ZEROS, True, wanted)


def warp_works(
    mode: Mode, shape: Sequence[int], last: bool, device: torch.device
) -> Iterator[Work]:
    """Yield forward and backward of one mode in one layout."""
    code, peer_mode, volume = MODES[mode], PEERS[mode], len(shape) == 5
    where = ("channels last" if last else "planes") + (", 3-D" if volume else "")
    has_peer = not (volume and mode == "cubic")  # torch's bicubic is for planes only
    picture = partial(image, shape, last, device, dtype=torch.float32)

    def with_grid(*inputs: Tensor) -> Inputs:
        return (*inputs[:-1], peers.grid_from(inputs[-1]))

    def gradient_peer(name: str, wanted: list[bool], prepare: Callable[..., Inputs]) -> Any:
        return {name: Peer(partial(grid_backward, peer_mode, wanted), prepare)} if has_peer else {}

    yield Work(
        f"{mode} forward, {where}",
        partial(tcwarp.warp, mode=mode),
        lambda number: (picture(number), displacement(shape, device, number)),
        {
            "grid_sample and its grid": Peer(
                lambda image, field: peers.grid_sample(image, peers.grid_from(field), peer_mode)
            ),
            "grid_sample": Peer(partial(peers.grid_sample, mode=peer_mode), with_grid),
        }
        if has_peer
        else {},
        0.0 if mode == "nearest" else 1e-4,
    )

    def backward(deterministic: bool, gradient: Tensor, field: Tensor) -> Tensor:
        output: Tensor = ops.tcwarp.warp_backward_input(gradient, field, code, ZEROS, deterministic)
        return output

    def gradient_and_field(number: int) -> Inputs:
        return picture(number), displacement(shape, device, number)

    by_image = gradient_peer(
        "grid_sample backward",
        [True, False],
        lambda gradient, field: (gradient, gradient, peers.grid_from(field)),
    )
    yield Work(
        f"{mode} backward, {where}", partial(backward, False), gradient_and_field, by_image, 1e-3
    )
    if not (last or volume):
        yield Work(
            f"{mode} deterministic backward, {where}",
            partial(backward, True),
            gradient_and_field,
            {"plain backward": Peer(partial(backward, False)), **by_image},
            1e-3,
        )
    if mode != "nearest":
        yield Work(
            f"{mode} field gradient, {where}",
            lambda gradient, image, field: ops.tcwarp.warp_backward_displacement(
                gradient, image, field, code, ZEROS
            ),
            lambda number: (picture(~number & 0xFF), *gradient_and_field(number)),
            gradient_peer("grid_sample backward by grid", [False, True], with_grid),
            1e-3,
        )


def dtype_works(shape: Sequence[int], device: torch.device) -> Iterator[Work]:
    """Yield the nearest warp of narrower elements."""
    for dtype in (torch.float16, torch.uint8):

        def inputs(number: int, dtype: torch.dtype = dtype) -> Inputs:
            picture = image(shape, False, device, number, dtype)
            return picture, displacement(shape, device, number)

        name = str(dtype).removeprefix("torch.")
        yield Work(f"nearest forward, planes, {name}", tcwarp.warp, inputs, tolerance=0.0)


def field_works(scale: Scale, device: torch.device) -> Iterator[Work]:
    """Yield drawing, inverting and aligning fields."""
    size = scale.planes[2:]
    # The device's own, which every graph knows.
    own = torch.cuda.default_generators[0] if device.type == "cuda" else torch.default_generator

    def draw(sigma: float, generator: torch.Generator | None, like: Tensor) -> Tensor:
        return tcwarp.random_displacement(
            scale.fields,
            size,
            sigma=sigma,
            generator=torch.Generator().manual_seed(0) if generator is None else generator,
            device=like.device,
        )

    def noise(like: Tensor) -> Inputs:
        return (torch.rand(1, 2, *size, device=like.device),)

    for sigma in (100.0, 10.0):
        yield Work(
            f"fields, sigma {sigma:g}",
            partial(draw, sigma, own),
            lambda number: (torch.empty(0, device=device),),
            {
                "separable convolution": Peer(
                    partial(peers.separable_gaussian, sigma=sigma), noise, times=scale.fields
                )
            },
            1e-3,
            checked=partial(draw, sigma, None),
        )
    shape = (scale.planes[0], 2, *size)
    yield Work("invert", tcwarp.invert, lambda n: (displacement(shape, device, n),), {}, 1e-3)
    yield Work(
        "align",
        tcwarp.align,
        lambda n: (displacement(shape, device, n), displacement(shape, device, ~n & 0xFF)),
        {},
        1e-3,
    )


def all_works(scale: Scale, device: torch.device) -> Iterator[Work]:
    """Yield every piece of work, those with goals first."""
    for mode in WITH_GOALS:
        yield from warp_works(mode, scale.planes, False, device)
    yield from field_works(scale, device)
    for mode in WITH_GOALS:
        yield from warp_works(mode, scale.planes, True, device)
    yield from warp_works("cubic", scale.planes, False, device)
    yield from dtype_works(scale.planes, device)
    yield from warp_works("cubic", scale.planes, True, device)
    for mode in MODES:
        for last in (False, True):
            yield from warp_works(mode, scale.volumes, last, device)


def latencies(scale: Scale, device: torch.device) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what one eager call of it, on a small image, takes from Python."""
    shape = scale.latency
    leaf = image(shape, False, device, 0, torch.float32)
    fields = [displacement(shape, device, number) for number in range(2)]
    for mode in MODES:
        yield f"warp, {mode}", partial(tcwarp.warp, leaf, fields[0], mode=mode)
    wanted = leaf.clone().requires_grad_()
    output = tcwarp.warp(wanted, fields[0])
    yield (
        "backward of warp, nearest",
        lambda: torch.autograd.grad(output, wanted, leaf, retain_graph=True),
    )
    yield "align", partial(tcwarp.align, *fields)
    yield (
        "random_displacement",
        partial(tcwarp.random_displacement, 1, shape[2:], sigma=12.0, device=device),
    )
