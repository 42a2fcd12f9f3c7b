"""A latency is a regression where two measurements clear the stored ratio by the margin; and only there."""

import pytest

from quambench.errors import BadArtefact
from quambench.latency import gate
from quambench.latency.drill import slowed
from quambench.latency.gate import MARGIN, LatencyStore, judge, latency_class
from quambench.latency.interleave import Ratio


def ratio(value, half=0.01):
    return Ratio(value, value - half, value + half, 1e-3, 1e-3, 41)


def judged(stored, *measured):
    """The verdict, and how many of the measurements were made."""
    left = list(measured)
    verdict = judge(lambda: left.pop(0), stored)
    return verdict, len(measured) - len(left)


STORED = ratio(1.0)
CLEAR, UNCLEAR = ratio(1.0 + MARGIN + 0.02), ratio(1.0 + MARGIN + 0.005)


def test_the_first_measurement_has_no_baseline():
    verdict, made = judged(None, ratio(3.0))
    assert (verdict.status, verdict.fails, made) == ("NEW", False, 1)
    assert str(verdict) == "NEW: ratio 3.000 [2.990, 3.010]; no baseline of this machine's class"


def test_same_is_measured_once():
    verdict, made = judged(STORED, ratio(1.0))
    assert (verdict.status, made) == ("SAME", 1)


def test_slower_twice_is_a_regression():
    verdict, made = judged(STORED, CLEAR, CLEAR)
    assert (verdict.status, verdict.fails, made) == ("REGRESSED", True, 2)
    assert str(verdict) == "REGRESSED: ratio 1.000 -> 1.070 [1.060, 1.080] (margin 5%)"


@pytest.mark.parametrize("second", [ratio(1.0), UNCLEAR])
def test_slower_once_is_noise(second):
    assert judged(STORED, CLEAR, second)[0].status == "SAME"


def test_an_interval_that_reaches_into_the_margin_clears_nothing():
    assert judged(STORED, UNCLEAR)[0].status == "SAME"


def test_faster_twice_is_an_improvement_that_passes():
    fast = ratio(1 / (1 + MARGIN) - 0.02)
    verdict, _ = judged(STORED, fast, fast)
    assert (verdict.status, verdict.fails) == ("IMPROVED", False)


def test_a_gate_without_the_second_measurement_would_be_noticed():
    """The twin: a rule that trusts one measurement fails test_slower_once_is_noise."""
    assert gate.slower(CLEAR, STORED)


def test_the_class_names_processor_and_threads():
    name = latency_class()
    assert name.startswith("cpu-")
    assert name.endswith("-threads")
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_")


def test_rows_are_kept_beside_each_other(tmp_path):
    store = LatencyStore(tmp_path)
    assert store.read() == {}
    store.write({"a": ratio(1.0), "b": ratio(2.0)}, {"commit": "1"})
    path = store.write({"b": ratio(3.0)}, {"commit": "2"})
    assert path == tmp_path / "latency" / f"{latency_class()}.json"
    assert store.read() == {"a": ratio(1.0), "b": ratio(3.0)}
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing half written stays


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}', '{"schema": 1, "rows": {"a": {"value": 1}}}'])
def test_a_damaged_file_is_one_line(tmp_path, text):
    store = LatencyStore(tmp_path)
    store.path.parent.mkdir()
    store.path.write_text(text)
    with pytest.raises(BadArtefact, match=r"is not a readable latency baseline .*; --qb-update records it anew"):
        store.read()


def test_a_later_schema_is_not_replaced(tmp_path):
    store = LatencyStore(tmp_path)
    store.path.parent.mkdir()
    store.path.write_text('{"schema": 2, "rows": {}}')
    with pytest.raises(BadArtefact, match="has schema 2, known is 1"):
        store.write({"a": ratio(1.0)}, {})
    assert '"schema": 2' in store.path.read_text()


def test_a_planted_slowdown_takes_that_much_longer():
    import time

    began = time.perf_counter()
    assert slowed(lambda: 7, 0.05)() == 7
    assert time.perf_counter() - began >= 0.05
