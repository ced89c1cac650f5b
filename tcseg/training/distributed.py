"""Training in several processes, as `torchrun` starts them: what one process alone would do."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tcseg.errors import RunError, RunFinished
from tcseg.method.transforms import SampledTransform, Transform
from tcseg.runs.folder import RunFolder


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that `torchrun` started, if it did; gives the device of this one.

    Parameters
    ----------
    device
        A GPU: each process takes its own, and they talk by nccl. The CPU: they talk by gloo.

    Raises
    ------
    RunError
        If another of the processes is lost.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    except RuntimeError as error:
        # Gloo has no type of its own for a peer that is gone.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise RunError(
            f"process {rank()} of {world_size()} lost contact with another, whose own message, or "
            "the launcher's, says why. The run resumes from its last checkpoint, with any number "
            "of processes"
        ) from error
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process; 0 is the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def first_of_all(create: Callable[[], RunFolder]) -> RunFolder:
    """Open a run folder in the process that writes; the others get one to read.

    Where it cannot be opened, the others end, without a word, as it does.
    """
    if world_size() == 1:
        return create()
    path: list[str | None] = [None]
    status = 1
    try:
        if rank() == 0:
            run = create()
            path, status = [str(run.path)], 0
            return run
    except RunFinished:
        status = 0
        raise
    finally:
        message: list[Any] = [path[0], status]
        dist.broadcast_object_list(message, src=0)
    if message[0] is None:
        raise SystemExit(message[1])
    return RunFolder(message[0])


def share(count: int, labelled: int, device: torch.device) -> Tensor:
    """Return which rows of a batch this process takes: as many labelled and others as any.

    Parameters
    ----------
    count, labelled
        Rows of the batch, and how many of them, the first ones, are labelled.
    device
        Of the result, int64 (count / world size,).

    Raises
    ------
    ValueError
        If the rows cannot be shared out evenly.
    """
    processes = world_size()
    if labelled % processes or count % processes:
        parts = f"{labelled} labelled and {count - labelled} unlabelled"
        raise ValueError(
            f"`batch_size` {count}: its {parts} images cannot be shared by {processes} processes; "
            f"use a multiple of {processes if labelled == count else 2 * processes}"
        )
    rows = torch.arange(count, device=device)
    first, rest = rows[:labelled].chunk(processes), rows[labelled:].chunk(processes)
    return torch.cat([first[rank()], rest[rank()]]) if labelled < count else first[rank()]


class Rows:
    """The part of a distribution of transforms that belongs to some rows of the batch.

    All processes draw for the whole batch, from generators in one state, so that the result does
    not depend on their number.
    """

    def __init__(self, transform: Transform, index: Tensor, batch: int) -> None:
        self.transform, self.index, self.batch = transform, index, batch

    def sample(
        self, batch: int, size: Sequence[int], generator: torch.Generator
    ) -> SampledTransform:
        """Draw for the whole batch; keep those of these rows."""
        return self.transform.sample(self.batch, size, generator).rows(self.index, self.batch)


def mean(values: dict[str, float], device: torch.device) -> dict[str, float]:
    """Return the means over all processes of figures that each has."""
    if world_size() == 1:
        return values
    total = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return dict(zip(values, (total / world_size()).tolist(), strict=True))


def highest(value: int, device: torch.device) -> int:
    """Return the largest of a number that each process has."""
    if world_size() == 1:
        return value
    largest = torch.tensor(value, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def parallel(network: nn.Module) -> nn.Module:
    """Return a network that averages gradients, and takes statistics, over all processes."""
    if world_size() == 1:
        return network
    for part in network.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.__class__ = SharedBatchNorm  # weights, statistics and options stay
    # Statistics are the same everywhere already: nothing to send before each pass. Torch 2.13 has
    # another name for it.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {name: False}
    return DistributedDataParallel(network, **options)


class SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the batches of all processes, as torch's SyncBatchNorm, also on the CPU."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"SharedBatchNorm: expected (N, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, ...) by mean and variance over all but the channels."""
        if not self.training:
            return super().forward(input)
        from torch.distributed.nn.functional import all_reduce  # not in every build of torch

        self._check_input_dim(input)
        axes = [0, *range(2, input.dim())]
        shape = (1, -1) + (1,) * (input.dim() - 2)
        values = input.float()
        count = input.numel() // input.shape[1] * world_size()
        mean: Tensor = all_reduce(values.sum(dim=axes)) / count  # with its gradient
        centred = values - mean.view(shape)
        variance: Tensor = all_reduce(centred.square().sum(dim=axes)) / count
        self._follow(mean.detach(), variance.detach() * (count / max(count - 1, 1)))
        scale, offset = (variance + self.eps).rsqrt(), None
        if self.affine:
            scale, offset = scale * self.weight, self.bias
        result = centred * scale.view(shape)
        return (result if offset is None else result + offset.view(shape)).to(input.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = self.momentum
        if momentum is None:  # a plain average of all batches
            momentum = 1 / int(self.num_batches_tracked)
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            running.lerp_(value, momentum)
