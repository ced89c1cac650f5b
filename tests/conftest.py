"""Hypothesis profiles and fixtures that all tests share."""

import functools
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

# `benchmarks`, also under plain `pytest`, behind the installed packages.
sys.path.append(str(Path(__file__).parents[1]))

# No deadline: the first example of a test may load a library, and machines differ in speed.
hypothesis.settings.register_profile(
    "quick", max_examples=40, deadline=None, derandomize=True, print_blob=True
)
hypothesis.settings.register_profile("thorough", max_examples=2000, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


# Tests run beside each other, one a core: threads of torch would only take turns.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # in processes that tests start
# Libraries add variables of their own when they are imported.
WATCHED = {*os.environ, "TCSEG_DEBUG", "TCSEG_JSRT_ROOT"} - {"PYTEST_CURRENT_TEST"}


def state_of_all() -> dict[str, object]:
    """Return what a test could leave behind to those after it."""
    return {
        "working folder": os.getcwd(),
        "environment": {name: os.environ.get(name) for name in WATCHED},
        "threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "what Ctrl-C does": signal.getsignal(signal.SIGINT),
        "what SIGTERM does": signal.getsignal(signal.SIGTERM),
    }


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that changes for others what all share: they may run in any order."""
    before = state_of_all()
    yield
    after = state_of_all()
    assert after == before, [name for name, value in after.items() if value != before[name]]


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """Every device that the operators run on; `-m cuda` selects the GPU's tests."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


@pytest.fixture
def threads() -> Iterator[list[int]]:
    """Thread counts to compare; the count in force comes back afterwards."""
    before = torch.get_num_threads()
    yield [1, 2, 3, 5]
    torch.set_num_threads(before)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder of made-up radiographs laid out as JSRT."""
    from made_up import write_tree  # here: the operators' tests run without what it imports

    write_tree(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def phantoms_made_once() -> Iterator[None]:
    """The phantoms of a size are made once: that takes longer than a tiny training."""
    from tcseg.data.phantom import population

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(population, "load", functools.cache(population.load))
        yield


@pytest.fixture(scope="session")
def finished_run(
    phantoms_made_once: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """One finished run of the tiny configuration: its folder, to be read, and its summary."""
    from tiny import TINY

    from tcseg.training.session import train

    out = tmp_path_factory.mktemp("runs") / "finished"
    return out, train(TINY, out, False)


@pytest.fixture(scope="session")
def forkserver() -> multiprocessing.context.ForkServerContext:
    """Where processes that train start at once, what they import imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.setenv("OMP_NUM_THREADS", "1")  # threads do not survive a fork
        multiprocessing.forkserver.ensure_running()
    return context


@pytest.fixture
def child(
    forkserver: multiprocessing.context.ForkServerContext,
) -> Iterator[Callable[..., multiprocessing.context.ForkServerProcess]]:
    """Start a process that calls a function; it ends with the test, however that ends."""
    started = []

    def start(*call: Any) -> multiprocessing.context.ForkServerProcess:
        arguments = (torch.get_num_threads(), *call)
        started.append(forkserver.Process(target=preloaded_call, args=arguments))
        started[-1].start()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join()


def preloaded_call(*arguments: Any) -> None:
    """Call a function in a process of its own."""
    from preloaded import call

    call(*arguments)
