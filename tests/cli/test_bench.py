"""quambench bench: the same figures as a table and as JSON, on models and kernels small enough for a test."""

import json

import pytest

from quambench.bench import bars, drill, gate, interleave, kernels, models
from quambench.bench.interleave import Ratio
from quambench.bench.kernels import Shape
from quambench.cli import bench
from quambench.cli.main import main
from quambench.models import ModelConfig


@pytest.fixture(autouse=True)
def small(monkeypatch):
    shapes = {"mamba2-130m": Shape("mamba2-130m", 32, 64, 8, groups=2, heads=8)}
    config = ModelConfig(architecture="mamba2", d_model=24, n_layers=1, vocab_size=64, d_state=8, head_dim=8)
    for module in (kernels, bars, bench):
        monkeypatch.setattr(module, "SHAPES", shapes)
    for module in (models, bench):
        monkeypatch.setattr(module, "CONFIGS", {"mamba2-130m": config})
    monkeypatch.setattr(models, "VOCABULARY", 64)
    monkeypatch.setattr(kernels, "PREFILL", 9)
    monkeypatch.setattr(kernels, "COPIED", 1 << 16)
    monkeypatch.setattr(interleave, "ROUNDS", 6)
    monkeypatch.setattr(interleave, "FEWEST_ROUNDS", 6)


def test_kernels_as_a_table_and_as_json(capsys, tmp_path):
    out = tmp_path / "not there yet" / "bench.json"
    code = main(["bench", "kernels", "--out", str(out)])
    text = capsys.readouterr().out
    document = json.loads(out.read_text())
    assert code == any(bar["met"] is False for bar in document["bars"])
    names = [row["name"] for row in document["kernels"]]
    assert len(names) == len(list(kernels.rows(["mamba2-130m"])))
    assert all(name in text for name in names)
    assert {bar["name"] for bar in document["bars"]} >= {"mamba2-130m: INT8 prefill", "mamba2-130m: INT8 step"}
    assert document["provenance"]["kernels"]["int8_linear"]
    for bar in document["bars"]:
        if bar["limit"] is not None and bar["ratio"]:
            assert bar["met"] == (bar["ratio"]["high"] <= bar["limit"])
        assert ("MISSED" in text) >= (bar["met"] is False)
    assert [m["name"] for m in document["memory"]] == ["mamba2-130m, float32", "mamba2-130m, INT8"]


def test_models_alone_as_json(capsys, monkeypatch):
    monkeypatch.setattr(bars, "transformers_model", lambda config: None)
    main(["bench", "models"])
    assert "not measured: transformers is not installed" in capsys.readouterr().out
    main(["bench", "models", "--json"])
    assert set(json.loads(capsys.readouterr().out)) == {"class", "provenance", "bars", "memory"}


def test_the_gate_is_drilled(capsys, monkeypatch):
    """With measurements that say how slow a call was made: planted ones are caught, clean ones are not."""

    def measured(make):
        slow = make.__class__.__name__ == "partial" and make.func is drill._slow
        value = 1.2 if slow else 1.0
        return Ratio(value, value - 0.01, value + 0.01, 1e-3, 1e-3, 5)

    monkeypatch.setattr(gate, "measured", measured)
    monkeypatch.setattr(drill, "measured", measured)
    monkeypatch.setattr(drill, "SHAPES", ("mamba2-130m",))
    assert main(["bench", "gate"]) == 0
    said = capsys.readouterr().out
    rows = sum("decode 1" in row for row in drill.ROWS)  # prefill is of another length here
    assert f"caught {20 * rows} of {20 * rows} planted slowdowns; 0 false alarms in {40 * rows} clean" in said
    assert f"{rows} rows" in f"{said.count('20 of 20')} rows"


@pytest.mark.parametrize(("caught", "alarms", "code"), [(20, 0, 0), (19, 1, 0), (18, 0, 1), (20, 2, 1)])
def test_a_gate_that_cannot_be_trusted_is_code_1(capsys, monkeypatch, caught, alarms, code):
    monkeypatch.setattr(bench, "drill", lambda progress: [drill.Drill("row", 0.1, 20, caught, 20, 40, alarms, 3)])
    assert main(["bench", "gate"]) == code


def test_a_bar_that_is_missed_is_code_1(capsys, monkeypatch):
    for limit, code in ((1e-9, 1), (1e9, 0)):
        ratio = Ratio(0.5, 0.4, 0.6, 1.0, 2.0, 9)
        monkeypatch.setattr(bench, "_models", lambda *_, r=ratio, most=limit: [bars.Bar("a", "b", r, most)])
        assert main(["bench", "models"]) == code
    assert "met" in capsys.readouterr().out


def test_an_unknown_shape_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "kernels", "--shape", "gpt-2"])
    assert stopped.value.code == 2
    assert "invalid choice: 'gpt-2'" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_told_before_anything_is_timed(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert main(["bench", "models", "--out", str(tmp_path / "file" / "x.json")]) == 2
    assert "file" in capsys.readouterr().err
