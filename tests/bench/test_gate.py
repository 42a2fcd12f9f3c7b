"""A latency is a regression where two measurements clear the stored ratio by the margin; and only there."""

import math
import time

import pytest
import torch

from quambench.bench import gate
from quambench.bench.drill import slowed
from quambench.bench.gate import LEAST_MARGIN, LatencyStore, Recorded, judge, latency_class, measured, record
from quambench.bench.interleave import Ratio
from quambench.core.errors import BadArtefact


def ratio(value, half=0.01):
    return Ratio(value, value - half, value + half, 1e-3, 1e-3, 41)


def judged(stored, *measured):
    """The verdict, and how many of the measurements were made."""
    left = list(measured)
    verdict = judge(lambda: left.pop(0), stored)
    return verdict, len(measured) - len(left)


STORED = Recorded(1.0, spread=0.01)  # three of these are less than 10 %
CLEAR, UNCLEAR = ratio(1.13), ratio(1.105)


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
    assert str(verdict) == "REGRESSED: ratio 1.000 -> 1.130 [1.120, 1.140] (margin 10%)"


@pytest.mark.parametrize("second", [ratio(1.0), UNCLEAR])
def test_slower_once_is_noise(second):
    assert judged(STORED, CLEAR, second)[0].status == "SAME"


def test_an_interval_that_reaches_into_the_margin_clears_nothing():
    assert judged(STORED, UNCLEAR)[0].status == "SAME"


def test_a_noisy_row_has_a_wider_margin():
    """Three times its spread: 1.13 is a regression of a quiet row, and nothing to one that is 4 % off by itself."""
    noisy = Recorded(1.0, spread=0.04)
    assert noisy.margin == pytest.approx(0.12)
    assert STORED.margin == LEAST_MARGIN
    assert judged(noisy, CLEAR)[0].status == "SAME"
    assert judged(noisy, ratio(1.15), ratio(1.15))[0].status == "REGRESSED"  # low end 1.14, e^0.12 = 1.127


def test_a_measurement_takes_the_fastest_of_each_set(monkeypatch):
    """Two sets whose calls are 2 and 3 times their counterparts, but for what others on the machine add: sqrt(6)."""
    taken = torch.ones(4, gate.SETS, 2, dtype=torch.float64)
    taken[:, 0::2, 0], taken[:, 1::2, 0] = 2, 3
    taken[1:, :, 0] *= 5
    taken[:3, :, 1] *= 7
    monkeypatch.setattr(gate, "samples", lambda *_: taken)
    found = measured(lambda: (None, None))
    assert found.value == pytest.approx(6**0.5)
    reach = 2.2622 * 0.5 * math.log(1.5) * (10 / 9) ** 0.5 / 10**0.5  # t of 9 degrees; the logs' deviation
    assert math.log(found.high / found.value) == pytest.approx(reach, rel=1e-4)
    assert math.log(found.value / found.low) == pytest.approx(reach, rel=1e-4)
    assert (found.seconds, found.counterpart_seconds, found.rounds) == (2, 1, 4)


def test_a_measurement_has_one_thread_and_puts_threads_back():
    before, seen = torch.get_num_threads(), set()
    measured(lambda: (lambda: seen.add(torch.get_num_threads()), lambda: None))
    assert seen == {1}
    assert torch.get_num_threads() == before


def test_what_is_recorded_is_a_median_and_a_spread(monkeypatch):
    values = iter([1.0, 1.1, 1.2, 5.0, 0.9])
    monkeypatch.setattr(gate, "measured", lambda make: ratio(next(values)))
    found = record(lambda: None)
    assert found.ratio == pytest.approx(1.1)
    assert found.spread == pytest.approx(torch.tensor([1.0, 1.1, 1.2, 5.0, 0.9]).log().std().item())


def test_faster_twice_is_an_improvement_that_passes():
    fast = ratio(1 / 1.1 - 0.02)
    verdict, _ = judged(STORED, fast, fast)
    assert (verdict.status, verdict.fails) == ("IMPROVED", False)


def test_the_class_names_the_processor():
    name = latency_class()
    assert name.startswith("cpu-")
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.")


def test_rows_are_kept_beside_each_other(tmp_path):
    store = LatencyStore(tmp_path)
    assert store.read() == {}
    store.write({"a": Recorded(1.0, 0.1), "b": Recorded(2.0, 0.1)}, {"commit": "1"})
    path = store.write({"b": Recorded(3.0, 0.2)}, {"commit": "2"})
    assert path == tmp_path / "latency" / f"{latency_class()}.json"
    assert store.read() == {"a": Recorded(1.0, 0.1), "b": Recorded(3.0, 0.2)}
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing half written stays


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}', '{"schema": 1, "rows": {"a": {"ratio": 1}}}'])
def test_a_damaged_file_is_one_line(tmp_path, text):
    store = LatencyStore(tmp_path)
    store.path.parent.mkdir()
    store.path.write_text(text)
    with pytest.raises(
        BadArtefact, match=r"is not a readable latency baseline .*; remove it and record it anew: --qb-update"
    ):
        store.read()


def test_a_later_schema_is_not_replaced(tmp_path):
    store = LatencyStore(tmp_path)
    store.path.parent.mkdir()
    store.path.write_text('{"schema": 2, "rows": {}}')
    with pytest.raises(BadArtefact, match="has schema 2, known is 1"):
        store.write({"a": Recorded(1.0, 0.1)}, {})
    assert '"schema": 2' in store.path.read_text()


def test_a_planted_slowdown_takes_that_much_longer():
    began = time.perf_counter()
    assert slowed(lambda: 7, 0.05)() == 7
    assert time.perf_counter() - began >= 0.05
