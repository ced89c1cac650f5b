"""The test of the test: each planted fault is seen by what is there to see it."""

import faulthandler
import os
import signal

import pytest
import torch
from emulator import compile_library, planted, poison


@pytest.fixture(scope="module", autouse=True)
def library():
    torch.ops.load_library(str(compile_library("planted")))
    with poison():
        yield


def test_without_a_fault_the_result_is_right():
    for _ in range(5):
        values, report, _ = planted("none")
        assert not values.any() and not report.any()


@pytest.mark.parametrize("fault", ["unwritten", "unwritten shared", "no barrier"])
def test_what_nobody_wrote_is_seen(fault):
    assert planted(fault)[0].isnan().any()


def test_blocks_take_another_order_at_every_launch():
    assert len({planted("last block wins")[2].item() for _ in range(10)}) > 2


@pytest.mark.parametrize(
    "fault, message",
    [
        ("returned lane", "the mask names a thread that has returned"),
        ("diverged lanes", "lanes have diverged"),
        ("other barrier", "others are at another one"),
        ("misaligned", "misaligned address"),
    ],
)
def test_what_is_undefined_ends_the_process(capfd, fault, message):
    child = os.fork()
    if child == 0:
        try:
            faulthandler.disable()
            planted(fault)
        finally:  # an exception would go on with the tests, here too
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGABRT
    assert message in capfd.readouterr().err
