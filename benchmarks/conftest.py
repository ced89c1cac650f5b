"""`pytest benchmarks`: alternating rounds, one table at the end, and `--record FILE`."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import torch

from benchmarks.record import Row, table, write

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

ROWS = pytest.StashKey[list[Row]]()
WARM_UP = 10  # calls
PACKAGES = ("pytest_benchmark", "scipy")  # without a peer, its rows are skipped


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --record."""
    parser.addoption(
        "--record",
        metavar="FILE",
        help="write the ratios with hardware, versions, date and command to FILE (JSON) and, "
        "as Markdown, beside it",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Keep the rows of this session; the plugin's own table of single times says less."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise pytest.UsageError(
            f'{", ".join(missing)} not installed; run `pip install "tcwarp[bench]"`'
        )
    config.stash[ROWS] = []
    config.option.benchmark_quiet = True


class Compare(Protocol):
    """Times our work and a peer's in turn."""

    def __call__(
        self,
        work: str,
        ours: Callable[[], Any],
        peer: str,
        theirs: Callable[[], Any],
        *,
        at_least: float | None = None,
        rounds: int = 15,
    ) -> Row:
        """Add one row to the table."""
        ...


def timed(function: Callable[[], Any], times: list[float]) -> None:
    """Call once and note the milliseconds."""
    start = time.perf_counter()
    function()
    times.append(1e3 * (time.perf_counter() - start))


def medians(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Time functions in alternating rounds, after one to warm up; milliseconds by name."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            timed(function, times[name])
    return {name: statistics.median(values) for name, values in times.items()}


@pytest.fixture
def compare(request: pytest.FixtureRequest, benchmark: BenchmarkFixture) -> Compare:
    """Return a function that times both sides in alternating rounds: noise hits both alike."""

    def run(
        work: str,
        ours: Callable[[], Any],
        peer: str,
        theirs: Callable[[], Any],
        *,
        at_least: float | None = None,
        rounds: int = 15,
    ) -> Row:
        own_times: list[float] = []
        peer_times: list[float] = []
        # The threads of a pool may share a core at first; the system parts them after a while.
        for warm_up in (theirs, *[ours] * WARM_UP):
            warm_up()
        benchmark.pedantic(
            lambda: timed(ours, own_times),
            setup=lambda: timed(theirs, peer_times),
            rounds=rounds,
        )
        own, other = statistics.median(own_times), statistics.median(peer_times)
        row = Row(work, peer, own, other, len(own_times), at_least)
        benchmark.extra_info.update(peer=peer, peer_ms=row.peer_ms, ratio=row.ratio)
        request.config.stash[ROWS].append(row)
        assert at_least is None or row.ratio >= at_least, (
            f"{work}: {row.ratio:.2f} times as fast as {peer}, to reach {at_least:g}"
        )
        return row

    return run


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    """Time the operators, not the recording of a graph; backward rows switch it on."""
    with torch.no_grad():
        yield


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the table; write it where --record says."""
    rows = config.stash[ROWS]
    if not rows:
        return
    threads = torch.get_num_threads()
    terminalreporter.section(f"times faster than the peer, medians, {threads} threads")
    terminalreporter.write_line(table(rows))
    target = config.getoption("--record")
    if target:
        command = " ".join(("pytest", *map(str, config.invocation_params.args)))
        write(Path(target), rows, command)
        terminalreporter.write_line(f"written: {target}")
