"""Time what a device does, not what Python does before: replayed graphs, alternating rounds."""

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

CALLS = 8  # between two looks at the clock
Inputs = tuple[Tensor, ...]


def first_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def repeated(
    call: Callable[..., Any], sets: Sequence[Inputs], device: torch.device
) -> tuple[Callable[[], Any], str]:
    """Return what makes CALLS calls, by turns on several sets of inputs, and how it does so.

    On a GPU a graph of the calls is replayed; where none can be captured they are made from
    Python, which takes about as long for each as a short kernel.
    """

    def calls() -> list[Any]:
        # Results are kept until the end: each call of a graph writes to memory of its own.
        return [call(*sets[number % len(sets)]) for number in range(CALLS)]

    calls()
    if device.type != "cuda":
        return calls, "calls"
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call(*sets[0])  # libraries set up what they need for each stream
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = calls()
        del kept
    except RuntimeError as error:
        torch.cuda.synchronize()
        return calls, f"calls: no graph was captured ({first_line(error)})"

    def replay(read: Sequence[Inputs] = sets) -> None:
        graph.replay()  # which keeps no input alive, but reads and writes where it was

    return replay, "graph"


def milliseconds(function: Callable[[], Any], device: torch.device) -> float:
    """Time a function by events on a GPU, by the clock elsewhere."""
    if device.type != "cuda":
        start = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    function()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def medians(
    functions: dict[str, Callable[[], Any]], rounds: int, device: torch.device
) -> dict[str, float]:
    """Time functions of CALLS calls in alternating rounds; return milliseconds of one call."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(milliseconds(function, device) / CALLS)
    return {name: statistics.median(values) for name, values in times.items()}


def eager_microseconds(function: Callable[[], Any], rounds: int, device: torch.device) -> float:
    """Return the median time of one call from Python until its result is there."""
    times = []
    for number in range(rounds + 3):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        if number >= 3:  # the first ones warm up
            times.append(1e6 * (time.perf_counter() - start))
    return statistics.median(times)


def peak_mib(function: Callable[[], Any], device: torch.device) -> float | None:
    """Return how much memory one call allocates at its peak on a GPU, its result included."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fill all memory that is allocated with NaN, the largest value of integers.

    So an element that is never written is seen. Torch does it where algorithms must be
    deterministic; operators that have no such algorithm are let through.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)
