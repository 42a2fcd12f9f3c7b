"""The command line: help, exit codes, one line for what is wrong."""

from __future__ import annotations

import io
import json
import math
import re
from types import SimpleNamespace

import pytest
import torch

from quambench.calibration.scales import Calibration
from quambench.case import Protocol
from quambench.cli.eval_tasks import _compared, _json
from quambench.cli.main import COMMANDS, main
from quambench.core.errors import NotWritten
from quambench.data.tokenizer import Tokenizer
from quambench.metrics import METRICS, Measurement
from quambench.models import ModelConfig, build
from quambench.models.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a tiny model and a corpus long enough for the default protocol's windows."""
    root = tmp_path_factory.mktemp("world")
    (root / "corpus").mkdir()
    line = "The union of the people shall stand for all of the people, and the people shall stand for the union. "
    for i in range(6):
        (root / "corpus" / f"{i}.txt").write_text(f"Part {i}. " + line * 90)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(ModelConfig(architecture="mamba2", d_model=8, n_layers=1, vocab_size=300, d_state=4, head_dim=8))
    save_checkpoint(root / "tiny", model, torch.float32)
    Tokenizer.train([line, "Part 0123456789."], 300).save(root / "tiny" / "tokenizer.json")
    return root


@pytest.mark.parametrize("spec", ["running_max/channel", "running_max/w4a8", "running_max/full", "running_max/gptq"])
def test_calibrate_takes_an_observer_and_nothing_behind_it(world, capsys, spec):
    code, _, error = call(capsys, "calibrate", world / "tiny", "--observer", spec)
    assert code == 2
    assert "--observer is an observer alone" in error


def call(capsys, *arguments):
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert "example: quambench" in " ".join(capsys.readouterr().out.split())


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


def test_list_is_for_people_and_for_machines(capsys):
    code, out, _ = call(capsys, "list", "observers")
    assert code == 0
    assert "percentile" in out
    code, out, _ = call(capsys, "list", "--json")
    assert {"mamba-tiny", "mamba2-tiny", "mamba-recall", "mamba2-recall"} == {
        m["name"] for m in json.loads(out)["models"]
    }


def test_calibrate_then_eval_with_the_saved_scales(world, tmp_path, capsys):
    scales, corpus = tmp_path / "scales", world / "corpus"
    small = ("--windows", 4, "--length", 16)
    code, out, _ = call(capsys, "calibrate", world / "tiny", "--corpus", corpus, "--out", scales, *small)
    assert code == 0
    assert "layers.0.x_conv_out" in out
    code, out, _ = call(capsys, "calibrate", world / "tiny", "--corpus", corpus, "--json", *small)
    assert set(json.loads(out)) >= {"layers.0.ssm_state", "lm_head:input"}
    saved = ("eval", world / "tiny", "--corpus", corpus, "--calibration", scales, "--json")
    code, out, err = call(capsys, *saved)
    assert code == 0
    assert re.fullmatch(r"the texts have fewer windows than are asked for: quality_windows \d+ of 48\n", err)
    (metrics,) = json.loads(out).values()
    assert metrics["kl"]["value"] >= 0
    code, _, err = call(capsys, "eval", "mamba-tiny", "--corpus", corpus, "--calibration", scales)
    assert code == 2
    assert "another model" in err


def test_quantize_then_eval_is_eval_of_the_case(world, tmp_path, capsys):
    """Equal to the last bit: so are all numbers that are measured of it."""
    made, corpus = tmp_path / "quantized", ("--corpus", world / "corpus")
    spec = ("--observer", "running_max/w4a8")
    code, out, _ = call(capsys, "quantize", world / "tiny", *corpus, *spec, "--out", made)
    assert code == 0
    assert "tiny/running_max/1x1/w4a8, 0.0 MB of weights" in out
    assert f"quambench eval {world / 'tiny'} --quantized {made}" in out
    code, out, _ = call(capsys, "eval", world / "tiny", *corpus, "--quantized", made, "--json")
    assert code == 0
    (stored,) = json.loads(out).values()
    code, out, _ = call(capsys, "eval", world / "tiny", *corpus, *spec, "--json")
    (fresh,) = json.loads(out).values()
    assert stored == fresh


@pytest.mark.parametrize("command", ["eval", "eval --task recall_induction_192 --limit 2"])
def test_a_quantized_model_meets_its_own_float_model_alone(world, tmp_path, capsys, command):
    corpus = ("--corpus", world / "corpus")
    spec = ("--observer", "running_max/quick")
    assert call(capsys, "quantize", world / "tiny", *corpus, *spec, "--out", tmp_path / "q")[0] == 0
    name, *task = command.split()
    own = call(capsys, name, world / "tiny", *corpus, "--quantized", tmp_path / "q", *task)
    assert own[0] == 0
    code, _, error = call(capsys, name, "mamba2-tiny", *corpus, "--quantized", tmp_path / "q", *task)
    assert code == 2
    assert "another model than 'mamba2-tiny'" in error
    code, _, error = call(capsys, name, world / "tiny", "--quantized", tmp_path / "q", *spec, *task)
    assert "--quantized and --observer both say where scales come from: give one of them" in error


def test_scales_are_saved_where_nobody_reads_the_table_and_shown_where_the_disk_is_full(
    world, tmp_path, capsys, monkeypatch
):
    made = ("calibrate", world / "tiny", "--corpus", world / "corpus", "--windows", 4, "--length", 16, "--out")

    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    with monkeypatch.context() as patched:
        patched.setattr("sys.stdout", Closed())
        assert main([*map(str, made), str(tmp_path / "scales")]) == 0
    assert Calibration.load(tmp_path / "scales").scales

    save = Calibration.save

    def full(calibration, folder):  # a run saves scales on its way too, in a folder of its own
        if folder == tmp_path / "more":
            raise NotWritten("no space")
        save(calibration, folder)

    monkeypatch.setattr(Calibration, "save", full)
    code, out, err = call(capsys, *made, tmp_path / "more")
    assert (code, err.splitlines()[-1]) == (2, "quambench: no space")
    assert "layers.0.x_conv_out" in out
    assert "written" not in out


def test_eval_runs_tasks_of_the_harness(world, capsys):
    """A row for each task and case, the difference taken document by document."""
    cases = ("--observer", "running_max/quick", "--observer", "running_max/w4a4/quick", "--corpus", world / "corpus")
    tasks = (
        "--task",
        "recall_induction_192,recall_selective_copy_8",
        "--task",
        "recall_induction_192",
        "--limit",
        3,
    )
    code, out, _ = call(capsys, "eval", world / "tiny", *cases, *tasks)
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()[2:]] == [
        [task, f"running_max/1x1{bits}/quick", "acc"]
        for task in ("recall_induction_192", "recall_selective_copy_8")
        for bits in ("", "/w4a4")
    ]


def test_a_difference_is_taken_document_by_document():
    """Worked by hand: two texts of two documents; float right 3 of 4, quantized 1 of 4."""
    evidence = {
        "task.t.value": torch.tensor([1.0, 0.0, 0.0, 0.0]).double(),
        "task.t.value_float": torch.tensor([1.0, 1.0, 1.0, 0.0]).double(),
        "task.t.log_likelihood": torch.tensor([-1.0, -2.0, -4.0, -1.0]).double(),
        "task.t.log_likelihood_float": torch.tensor([-1.0, -1.0, -1.0, -1.0]).double(),
        "task.t.weight": torch.ones(4).double(),
        "task.t.document": torch.tensor([0, 0, 1, 1]),
    }
    found = _compared("t", evidence)
    assert (found["float"].value, found["quantized"].value) == (0.75, 0.25)
    assert found["difference"] == Measurement(-0.5, 0.0)  # one lost in each text
    # Differences 0 -1 -3 0, mean -1: texts' residuals 1 and -1, sqrt(2 / 1 * 2) / 4.
    assert found["log_likelihood_difference"] == Measurement(-1.0, 0.5)
    assert json.loads(_json({"m/case": {"t": ("acc", True, found)}})) == {
        "m/case": {
            "t": {
                "metric": "acc", "better": "higher", "documents": 4, "float": {"value": 0.75, "se": 0.25},
                "quantized": {"value": 0.25, "se": 0.25}, "difference": {"value": -0.5, "se": 0.0},
                "log_likelihood_difference": {"value": -1.0, "se": 0.5},
            }
        }
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("calibrate", "mamba2-tin"), "Did you mean 'mamba2-tiny'"),
        (("calibrate", "mamba2-tiny", "--observer", "percentile[alpha=0]"), "alpha must be in (0, 1]"),
        (("calibrate", "mamba2-tiny", "--policy", "quamb"), "Did you mean 'quamba'"),
        (("calibrate", "mamba2-tiny", "--policy", "scale_multiplier[factor=2]"), "factor must be in (0, 1]"),
        (("calibrate", "mamba2-tiny", "--grouping", "chanel"), "Did you mean 'channel'"),
        (("calibrate", "mamba2-tiny", "--windows", "0"), "--windows must be a whole number, 1 or more (got 0)"),
        (("calibrate", "mamba2-tiny", "--length", "-3"), "--length must be a whole number, 1 or more (got -3)"),
        (("eval", "mamba2-tiny", "--observer", "mse/w8a9"), "a precision is written w8a8"),
        (("eval", "mamba2-tiny", "--observer", "mse/mix[w8a8*3]"), "is for 3 layers, and this model has 4"),
        (("eval", "mamba2-tiny", "--observer", "mse/mix[no/where.json]"), "cannot read the mix no/where.json"),
        (("eval", "mamba2-tiny", "--observer", "mse/nosuch"), "no part of a case named 'nosuch'"),
        (("compare", "--against", "HEAD", "--observer", "mse/weights=row"), "weights must be per"),
        (("calibrate", "mamba-recall", "--windows", "0"), "--windows must be a whole number, 1 or more"),
        (("eval", "mamba2-tiny", "--observer", "maximum"), "no observer named 'maximum'"),
        (("eval", "mamba2-tiny", "--corpus", "nowhere"), "no such corpus"),
        (("eval", "mamba2-tiny", "--calibration", "nowhere"), "calibration.json is missing"),
        (("eval", "mamba2-tiny", "--task", ","), "--task must name a task"),
        (("eval", "mamba2-tiny", "--task", "prose_cloze", "--limit", "0"), "--limit must be a whole number, 1 or more"),
        (("eval", "mamba2-tiny", "--limit", "3"), "--limit is of --task alone"),
        (("report", "nowhere"), "there is no nowhere"),
        (("report", "quambench/cli"), "quambench/cli holds no baseline"),
        (("claims", "--stored", "--baselines", "nowhere"), "there is no folder nowhere"),
        (("selftest", "--error-rates", "0"), "--error-rates must be a whole number, 1 or more (got 0)"),
        (("selftest", "--fault", "nosuch"), "no fault named 'nosuch'"),
        (("zoo", "train", "mamba3-tiny"), "no bundled model named 'mamba3-tiny'"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(arguments, says, capsys):
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
    assert not out


def test_a_corrupt_checkpoint_is_one_line(world, tmp_path, capsys):
    for file in (world / "tiny").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    code, _, err = call(capsys, "calibrate", tmp_path)
    assert code == 2
    assert "model.safetensors" in err
    assert err.count("\n") == 1


def test_text_shorter_than_a_window_is_one_line(world, tmp_path, capsys):
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"short {i}")
    code, _, err = call(capsys, "eval", world / "tiny", "--corpus", tmp_path)
    assert code == 2
    assert f"a window of {Protocol().calib_length} tokens" in err


def test_fewer_windows_than_asked_for_are_an_error(world, capsys):
    corpus = ("--corpus", world / "corpus")
    code, out, err = call(capsys, "calibrate", world / "tiny", *corpus, "--windows", 100_000, "--length", 16)
    assert (code, out, err.count("\n")) == (2, "", 1)
    asked = r"calibration texts fill (\d+) of the 100000 windows of 16 tokens that are asked for"
    there = int(re.search(asked, err)[1])
    assert err.endswith(f"take what there is, --windows {there}\n")
    enough = ("--windows", there, "--length", 16)
    code, _, err = call(capsys, "calibrate", world / "tiny", *corpus, *enough)
    assert (code, err) == (0, "")
    code, _, err = call(capsys, "calibrate", world / "tiny", *corpus)  # nobody asked for a number
    assert code == 0
    assert re.fullmatch(r"the texts have fewer windows than are asked for: calib_windows \d+ of 256\n", err)


def test_what_is_left_out_of_a_folder_is_said(world, tmp_path, capsys):
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"text {i} " * 400)
    (tmp_path / "notes.md").write_text("more text")
    small = ("--windows", 1, "--length", 16)
    code, _, err = call(capsys, "calibrate", world / "tiny", "--corpus", tmp_path, *small)
    assert (code, err) == (0, f"{tmp_path}: left out 1 not named .txt (notes.md)\n")


def test_interruption_says_so(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("quambench.cli.calibrate.load_checkpoint", interrupted)
    code, _, err = call(capsys, "calibrate", "mamba2-tiny")
    assert code == 130
    assert "interrupted" in err


def test_report_tabulates_what_is_stored(capsys):
    code, out, _ = call(capsys, "report", "baselines/alpha")
    assert code == 0
    assert "mamba2-tiny/running_max/1x1" in out


def test_report_as_json_is_one_document(capsys):
    code, out, _ = call(capsys, "report", "baselines/alpha", "--format", "json")
    assert code == 0
    files = json.loads(out)["files"]
    assert len(files) > 1
    assert all(document["verdicts"] for document in files.values())


@pytest.mark.parametrize(
    ("arguments", "work"),
    [
        (("calibrate", "mamba2-tiny", "--out"), "calibrate.load_checkpoint"),
        (("zoo", "train", "mamba2-tiny", "--out"), "zoo.train"),
        (("compare", "--against", "HEAD", "--report"), "compare.compare"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(arguments, work, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(f"quambench.cli.{work}", lambda *_: pytest.fail("the work was begun"))
    file = tmp_path / "there"
    file.touch()
    code, _, err = call(capsys, *arguments, file / "x.md" if "--report" in arguments else file)
    assert code == 2
    assert "is no folder" in err
    assert err.count("\n") == 1


def test_eval_shows_what_some_case_measured(monkeypatch, capsys):
    nothing = dict.fromkeys(METRICS, Measurement(math.nan, math.nan))
    measured = {
        "running_max": nothing | {"recall_associative": Measurement(0.75, 0.01), "state_error": Measurement(0.5, 0.1)},
        "percentile": nothing | {"recall_associative": Measurement(0.25, 0.01), "kl": Measurement(0.1, 0.0)},
    }
    trained = SimpleNamespace(summary="8 steps in 1.2 s")
    monkeypatch.setattr(
        "quambench.cli.eval.ModelRun",
        lambda _, __, cases, *___, **____: SimpleNamespace(
            result=lambda case: SimpleNamespace(metrics=measured[case.observer.name]),
            refined={cases[1]: trained},
            shortfall="",
        ),
    )
    code, out, _ = call(capsys, "eval", "mamba-recall", "--observer", "running_max", "--observer", "percentile")
    assert code == 0
    *table, note = out.splitlines()
    assert note == "mamba-recall/percentile/1x1: 8 steps in 1.2 s"
    rows = {line.split()[0]: " ".join(line.split()[3:]) for line in table[2:]}
    assert rows == {
        "kl": "- 0.1",
        "recall_associative": "0.75 ± 0.01 0.25 ± 0.01",
        "state_error": "0.5 ± 0.1 -",
    }


def test_a_policy_that_nobody_knows_is_told_before_the_model_is_loaded(capsys):
    code, _, error = call(capsys, "calibrate", "no-such-model", "--policy", "quambo")
    assert code == 2
    assert "no policy named 'quambo'. Did you mean 'quamba'?" in error
