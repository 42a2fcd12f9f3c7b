"""The tables that end a run of the speed suites, and the latencies' baselines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
from tabulate import tabulate

from quambench.bench.gate import LatencyStore, LatencyVerdict, judge, latency_class, measured, one_thread, record
from quambench.bench.kernels import SHAPES, Rates, Row, rows
from quambench.core.provenance import provenance
from quambench.pytest_plugin import SESSION

ROWS = pytest.StashKey[list[list[str]]]()
LATENCIES = pytest.StashKey[list[tuple[Row, LatencyVerdict, float | None]]]()
USUAL = ("mamba-130m", "mamba2-130m")  # --qb-full measures every shape


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS], config.stash[LATENCIES] = [], []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "row" in metafunc.fixturenames:
        shapes = SHAPES if metafunc.config.option.qb_full else USUAL
        metafunc.parametrize("row", [pytest.param(row, id=row.name) for row in rows(shapes)])


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Callable[[str, float, str, float | None], None]:
    """told(what, ratio, "times of what", limit): one row."""

    def add(what: str, ratio: float, of: str, limit: float | None = None) -> None:
        request.config.stash[ROWS].append([what, f"{ratio:.2f}", of, "-" if limit is None else f"{limit:g}"])

    return add


@pytest.fixture(scope="session")
def latency(request: pytest.FixtureRequest) -> Iterator[Callable[[Row], LatencyVerdict]]:
    """latency(row): measured and judged against this machine's class; stored at the end, where that is asked for."""
    config = request.config
    if hasattr(config, "workerinput"):
        pytest.skip("a latency is measured with nothing beside it: run suites/speed without -n")
    with one_thread():
        rates = Rates.measure()
    store, state = LatencyStore(config.stash[SESSION].baselines), config.stash[SESSION]
    stored, kept = store.read(), {}

    def check(row: Row) -> LatencyVerdict:
        verdict = judge(lambda: measured(row.make), stored.get(row.name))
        config.stash[LATENCIES].append((row, verdict, rates.share(row, verdict.latest.seconds)))
        if stores(verdict):
            kept[row.name] = record(row.make)
        return verdict

    def stores(verdict: LatencyVerdict) -> bool:
        if verdict.stored is None:
            return state.update or state.new_only
        return state.update and (bool(state.accept) or not verdict.fails)

    yield check
    if kept and request.session.exitstatus != pytest.ExitCode.INTERRUPTED:
        made = provenance(folder=state.root)
        store.write(kept, {"accepted": state.accept} | made if state.accept else made)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if table := config.stash[ROWS]:
        terminalreporter.section("ratios")
        text = tabulate(table, headers=["what", "ratio", "times", "limit"], disable_numparse=True)
        terminalreporter.write_line(text)
    if found := config.stash[LATENCIES]:
        terminalreporter.section(f"latencies on {latency_class()}")
        terminalreporter.write_line(_latencies(found))


def _latencies(found: list[tuple[Row, LatencyVerdict, float | None]]) -> str:
    table = [
        [v.status, row.name, row.counterpart, str(v.latest), *_stored(v), f"{v.latest.seconds * 1e3:.3g}",
         "" if share is None else f"{share:.0%}"]
        for row, v, share in found
    ]  # fmt: skip
    headers = ["", "kernel", "against", "ratio [95 %]", "stored", "margin", "ms", "of bound"]
    return tabulate(table, headers, disable_numparse=True)


def _stored(verdict: LatencyVerdict) -> tuple[str, str]:
    if verdict.stored is None:
        return "-", "-"
    return f"{verdict.stored.ratio:.3f}", f"{math.expm1(verdict.stored.margin):.0%}"
