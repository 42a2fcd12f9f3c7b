"""The plug-in as a user meets it: a tiny model, a small corpus, one suite, many runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from quambench.plugin.scheduling import scope

SUITE = """
import pytest

@pytest.mark.cases("running_max", "percentile[alpha=0.9]")
def test_alpha(case, judge):
    judge(case)
"""
# Everything at the size of the model: the protocol's own counts are for real ones.
CONFTEST = """
from quambench import case
case.Case.__dataclass_fields__  # imported before the plug-in builds a case
import dataclasses
small = case.Protocol(calib_windows=6, calib_length=16, quality_windows=8, quality_length=32, decode_windows=6,
                      decode_prefix=8, decode_steps=6, error_windows=4, error_length=16, max_items=12)
case.Protocol.__init__.__kwdefaults__.update(dataclasses.asdict(small))
{fault}
pytest_plugins = ["quambench.pytest_plugin"]
"""
# The units' probes take most of a small run. Where nothing is planted they answer as stored, which tests/gate shows.
UNASKED = """
from quambench.gate import probes

def in_turn(expected=None, streams=None, only=None):
    names = [probe.name for probe in probes.all_probes() if only is None or probe.name in only]
    return iter([probes.ProbeResult(name, "same", "") for name in names])

probes.in_turn = in_turn
"""
Q_MAX = "from quambench.grids import grid; grid.q_max = lambda bits: 126"
TRUNCATE = "from quambench.grids import grid; import torch; grid.ROUNDINGS['half_even'] = torch.trunc"
HALF_UP = "from quambench.grids import grid; import torch; grid.ROUNDINGS['half_even'] = lambda x: torch.floor(x + 0.5)"
COMPLEMENT = (
    "from quambench.observers import percentile as p; q = p.upper_quantile; "
    "p.upper_quantile = lambda x, alpha: q(x, 1 - alpha)"
)
STATE_TIMES_4 = (
    "import quambench_kernels.int8_selective_scan as scan; from quambench_kernels import dispatch; "
    "scan_of_more = lambda run, *a: run(*a[:13], a[13].clamp(-32, 31) * 4, *a[14:]); "  # of the state
    "planted = dispatch.around('int8_selective_scan', scan_of_more); planted.__enter__()"
)
BROKEN = "from quambench.observers import running_max as m; m.RunningMax.take = lambda self, batch: 1 / 0"


@pytest.fixture
def run(pytester, world):
    """run(*options, fault=""): pytest in a fresh process over one suite, model and corpus given.

    The probes are asked where a fault is planted, or asked for.
    """
    pytester.makeini("[pytest]")  # marks the root, where baselines/ and suites/ are looked for
    suites = pytester.mkdir("suites")
    (suites / "test_alpha.py").write_text(SUITE)

    def go(*options, fault="", model=True, asked=None):
        asks = bool(fault) if asked is None else asked
        pytester.makeconftest(CONFTEST.format(fault=fault if asks else UNASKED + fault))
        fixed = ["--qb-corpus", str(world / "corpus"), "-p", "no:cacheprovider", "--import-mode=importlib"]
        if model:
            fixed += ["--qb-model", str(world / "tiny-model")]
        return pytester.runpytest_subprocess("suites", *fixed, *options)

    return go


@pytest.fixture(scope="session")
def baselines(tmp_path_factory) -> Path:
    """Filled by the first test that needs them recorded; the others copy."""
    return tmp_path_factory.mktemp("recorded") / "baselines"


@pytest.fixture
def recorded(run, baselines, pytester):
    if baselines.exists():
        shutil.copytree(baselines, pytester.path / "baselines")
    else:
        run("--qb-new-only").assert_outcomes(passed=2)
        shutil.copytree(pytester.path / "baselines", baselines)
    return run


def text(result) -> str:
    return "\n".join(result.outlines + result.errlines)


def test_a_case_without_a_baseline_fails_and_says_how_to_record_it(run):
    result = run()
    assert result.ret == 1
    assert "NEW tiny-model/running_max/1x1" in text(result)
    assert "add --qb-new-only to this command" in text(result)


def test_recorded_once_it_passes_and_again_and_narrowed(recorded):
    assert recorded().ret == 0
    narrowed = recorded("-k", "percentile")
    narrowed.assert_outcomes(passed=1, deselected=1)


def test_an_update_stores_and_passes(recorded, pytester, monkeypatch):
    before = {p: p.read_bytes() for p in (pytester.path / "baselines").rglob("*.*")}
    refused = recorded("--qb-update", fault=TRUNCATE)
    assert refused.ret == 1
    assert 'not stored, being worse (--qb-accept "why" stores it)' in text(refused)
    assert {p: p.read_bytes() for p in (pytester.path / "baselines").rglob("*.*")} == before
    (pytester.mkdir("site") / "sitecustomize.py").write_text(Q_MAX)  # in the process of the noise floor too
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(pytester.path / "site"))
        result = recorded("--qb-update", "--qb-accept", "to see it", asked=True)
        again = recorded(asked=True)  # the cases are as stored now; the probes, whose suite did not run, are not
    assert result.ret == 0
    assert "written:" in text(result)
    assert recorded(asked=True).ret == 1  # without the fault the stored results are another thing
    assert "probes (the first: grid/scale) still answer otherwise than stored" in text(result)
    assert again.ret == 1
    assert "at grid/scale; quality equal to the last bit" in text(again)
    assert "embedding.weight" not in text(again)


@pytest.mark.parametrize(
    ("fault", "cases", "place"),
    [
        (Q_MAX, 2, "at embedding.weight"),
        (TRUNCATE, 2, "at embedding.weight"),
        (COMPLEMENT, 1, "at layers.0.x_proj:input"),
        # An untrained model hardly reads its state, but the operator's probe does.
        (STATE_TIMES_4, 2, "at kernel/int8_selective_scan"),
    ],
)
def test_a_planted_fault_turns_red_and_names_the_place(recorded, fault, cases, place):
    result = recorded(fault=fault)
    result.assert_outcomes(failed=cases, passed=2 - cases)
    assert result.ret == 1
    reasons = {
        line for line in result.outlines if line.startswith(("REGRESSED", "DRIFTED", "IMPROVED", "INCONCLUSIVE"))
    }
    assert len(reasons) == cases
    assert all(place in line for line in reasons)


def test_drift_passes_where_allowed_and_a_regression_never(recorded):
    assert recorded("--qb-allow-drift", fault=HALF_UP).ret == 0  # no activation falls on a tie: only the probe sees it
    assert recorded(fault=HALF_UP).ret == 1
    assert recorded("--qb-allow-drift", fault=TRUNCATE).ret == 1


def test_probes_are_rows_of_their_own_and_an_update_of_them_is_asked_for(run, pytester):
    suite = pytester.path / "suites" / "test_probes.py"
    suite.write_text("def test_probe(probe, judge_probe):\n    judge_probe(probe)\n")
    only = ("-k", "probe")
    clean = run(*only, asked=True)
    assert clean.ret == 0
    assert "probes of single units answer as stored" in text(clean)
    broken = run(*only, fault=HALF_UP)
    assert broken.ret == 1
    assert "DRIFTED probe/grid/half_even: 8 bits: [" in text(broken)


def test_a_floor_that_cannot_be_measured_elsewhere_loses_no_result(run, pytester):
    fault = "from quambench.session import rerun; rerun.sys.executable = '/bin/false'"
    result = run("--qb-new-only", fault=fault, asked=False)
    assert result.ret == 0
    assert "its noise floor is the disturbed repetition's alone" in text(result)
    assert run().ret == 0


def test_a_crash_in_calibration_is_an_error_verdict_without_a_traceback(recorded):
    result = recorded(fault=BROKEN)
    assert result.ret == 1
    assert re.search(r"ERROR tiny-model/running_max/1x1: the unit answers [^\n]*; ZeroDivisionError", text(result))
    assert "Traceback" not in text(result)


def test_a_baseline_that_cannot_be_read_is_an_error_and_an_update_replaces_it(recorded, pytester):
    (file,) = pytester.path.glob("baselines/alpha/*/tiny-model.json")
    file.write_text(file.read_text()[:-30])
    result = recorded()
    assert result.ret == 1
    assert "is not a readable baseline" in text(result)
    assert "Traceback" not in text(result)
    assert "git checkout" in text(result)
    assert recorded("--qb-update").ret == 0
    assert recorded().ret == 0


def test_another_machine_class_is_compared_portably(recorded, pytester):
    (own,) = pytester.path.glob("baselines/alpha/*")
    own.rename(own.with_name("cpu-another-class"))
    result = recorded()
    assert result.ret == 0
    assert "SAME (portable)" in text(result)


def test_new_only_touches_nothing_that_is_stored(recorded, pytester):
    (file,) = pytester.path.glob("baselines/alpha/*/tiny-model.json")
    before = file.read_bytes()
    recorded("--qb-new-only", fault=Q_MAX)
    assert file.read_bytes() == before


def test_reports_are_written_by_suffix(recorded, pytester):
    result = recorded("--qb-report", "out/x.md", "--qb-report", "out/x.json")
    assert [line for line in result.outlines if line.startswith("report: ")] == [
        "report: out/x.md",
        "report: out/x.json",
    ]
    assert "| tiny-model/running_max/1x1" in (pytester.path / "out" / "x.md").read_text()
    document = json.loads((pytester.path / "out" / "x.json").read_text())
    assert [v["status"] for v in document["verdicts"]] == ["SAME", "SAME"]


def test_two_workers_agree_with_one_process(run, pytester):
    result = run("-n", "2", "--qb-new-only")
    result.assert_outcomes(passed=2)
    assert len(list(pytester.path.glob("baselines/alpha/*/tiny-model.json"))) == 1
    assert run().ret == 0
    both = run("-n", "2", fault=Q_MAX)
    both.assert_outcomes(failed=2)
    assert "at embedding.weight" in text(both)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--qb-model", "mamba2-tin"], "Did you mean 'mamba2-tiny'"),
        (["--qb-observer", "percentil"], "Did you mean 'percentile'"),
        (["--qb-observer", "percentile[alpha=2]"], "alpha must be in (0, 1]"),
        (["--qb-report", "x.pdf"], "a report's format follows its suffix"),
        (["--qb-corpus", "nowhere"], "no such corpus"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_4(run, options, says):
    result = run(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert says in text(result)
    assert "Traceback" not in text(result)


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_text_shorter_than_a_window_is_exit_code_4(run, pytester, workers):
    short = pytester.mkdir("short")
    for i in range(4):
        (short / f"{i}.txt").write_text(f"short text {i}")
    result = run("--qb-corpus", str(short), "--qb-new-only", *workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "as long as a window" in text(result)
    assert "Traceback" not in text(result)
    assert "INTERNALERROR" not in text(result)
    assert "During handling" not in text(result)
    if workers:  # the controller says it once, after what the workers' tests say
        assert sum(line.startswith("quambench: no document is as long") for line in result.outlines) == 2 + 1
    assert not (pytester.path / "baselines").exists()


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_answers_that_cannot_be_read_are_exit_code_4(run, pytester, workers):
    (pytester.path / "suites" / "test_probes.py").write_text("def test_probe(probe, judge_probe): judge_probe(probe)")
    fault = (
        "from quambench.core.errors import BadArtefact; from quambench.gate import probes\n"
        "def refuse(**_): raise BadArtefact('the answers are corrupt')\nprobes.check = refuse"
    )
    result = run("-k", "half_even", *workers, fault=fault)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "quambench: the answers are corrupt" in text(result)
    assert "INTERNALERROR" not in text(result)


INTERRUPTED = """
import pytest

@pytest.mark.cases("running_max", "percentile[alpha=0.9]")
def test_alpha(case, judge):
    judge(case)
    {stop}
"""


@pytest.mark.parametrize("stop", ["raise KeyboardInterrupt", "pytest.exit('enough', returncode=4)"])
def test_a_run_that_ended_early_stores_nothing_and_says_so(run, pytester, stop):
    (pytester.path / "suites" / "test_alpha.py").write_text(INTERRUPTED.format(stop=stop))
    result = run("--qb-new-only", "--qb-report", "x.md")
    assert result.ret in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.USAGE_ERROR)
    assert "NEW tiny-model/running_max/1x1" in text(result)
    assert "written" not in text(result)
    assert "report: " not in text(result)
    assert "the run ended early: nothing was stored" in text(result)
    assert not list(pytester.path.glob("x.md"))
    assert not (pytester.path / "baselines").exists()


def test_a_corrupt_checkpoint_is_exit_code_4(run, world, pytester):
    broken = pytester.mkdir("broken")
    for file in (world / "tiny-model").iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[: -9 if file.suffix == ".safetensors" else None])
    result = run("--qb-model", str(broken), model=False)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "Traceback" not in text(result)


ORPHANS = """
import pytest

@pytest.mark.cases({observers})
def test_alpha(case, judge):
    judge(case)
"""


def test_a_stored_case_that_nothing_produces_is_an_orphan_on_full_runs_only(run, pytester, world):
    """Full means no --qb-model either, so the tiny model stands in for the bundled ones."""
    as_bundled = (
        "from quambench.models import checkpoint as c; from pathlib import Path; "
        f"c.bundled_names = lambda language='': ('tiny-model',); c._zoo = lambda: Path({str(world)!r})"
    )
    suite = pytester.path / "suites" / "test_alpha.py"
    assert run("--qb-new-only", fault=as_bundled, model=False, asked=False).ret == 0
    suite.write_text(ORPHANS.format(observers="'running_max'"))
    result = run(fault=as_bundled, model=False, asked=False)
    assert result.ret == 1
    assert "ORPHAN tiny-model/percentile[alpha=0.9]/1x1" in text(result)
    assert run("-k", "running_max", fault=as_bundled, model=False, asked=False).ret == 0
    assert run("suites/test_alpha.py::test_alpha", fault=as_bundled, model=False, asked=False).ret in (0, 1)
    assert run("--qb-update", fault=as_bundled, model=False, asked=False).ret == 0
    assert run(fault=as_bundled, model=False, asked=False).ret == 0


def test_a_suite_for_one_architecture_leaves_the_others_models_out(run, pytester):
    (pytester.path / "suites" / "test_heads.py").write_text(
        SUITE.replace('"percentile[alpha=0.9]"', '"running_max/2x2", architecture="mamba2"').replace("alpha", "heads")
    )
    result = run("--qb-new-only")  # the model is a Mamba one
    result.assert_outcomes(passed=2, skipped=1)


def test_cases_of_one_model_stay_on_one_worker(recorded):
    """Apart, they would calibrate once a worker, and measure what they share twice."""
    result = recorded("-n", "2", "-v")
    workers = {line.split("]")[0] for line in result.outlines if line.startswith("[gw") and "::test_alpha[" in line}
    assert len(workers) == 1
    result.assert_outcomes(passed=2)


@pytest.mark.parametrize(
    ("nodeid", "expected"),
    [
        ("s/test_alpha.py::test_alpha[m/percentile[alpha=0.9]/1x1]", "m"),
        ("s/test_warmup.py::test_warmup[m/percentile/1x1/w8a4/quick]", "m/quick"),
        ("s/test_warmup.py::test_warmup[other/percentile/1x1]", "s/test_warmup.py::test_warmup[other/percentile/1x1]"),
        ("s/test_probes.py::test_probe[calibration/mamba]", "s/test_probes.py::test_probe[calibration/mamba]"),
        ("s/test_probes.py::test_all", "s/test_probes.py::test_all"),
    ],
)
def test_what_stays_together(nodeid, expected):
    assert scope(nodeid, {"m"}) == expected


def ids_of(result):
    return [line.partition("[")[2][:-1] for line in result.outlines if "::test_alpha[" in line]


def test_groupings_and_precisions_take_the_place_of_the_suites_own(run):
    options = ("--collect-only", "-q", "--qb-grouping", "split", "--qb-grouping", "channel", "--qb-precision", "w8a6")
    assert ids_of(run(*options)) == [
        f"tiny-model/{observer}/{grouping}/w8a6"
        for observer in ("running_max", "percentile[alpha=0.9]")
        for grouping in ("split", "channel")
    ]


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (("--qb-grouping", "chanel"), "Did you mean 'channel'"),
        (("--qb-precision", "w8a9"), "a precision is written w8a8"),
        (("--qb-precision", "nowhere.json"), "cannot read the mix nowhere.json"),
    ],
)
def test_a_wrong_grouping_or_precision_is_one_line(run, option, says):
    result = run(*option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert says in text(result)
    assert "Traceback" not in text(result)


def test_a_mix_from_a_file_has_its_content_for_a_name(run, pytester):
    (pytester.path / "mine.json").write_text('{"layers": ["W4A16"], "lm_head": "W8A8"}')
    options = ("--collect-only", "-q", "-k", "running_max", "--qb-precision")
    expected = ["tiny-model/running_max/1x1/mix[w4a16,lm_head=w8a8]"]
    assert ids_of(run(*options, "mine.json")) == ids_of(run(*options, "mix[w4a16,lm_head=w8a8]")) == expected


def test_a_mix_of_another_depth_is_told_and_a_suites_own_is_left_out(run, pytester):
    (pytester.path / "deep.json").write_text('["W4A16", "W4A8"]')
    result = run("-k", "running_max", "--qb-precision", "deep.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "mix[w4a16,w4a8] is for 2 layers, and this model has 1" in text(result)
    assert "Traceback" not in text(result)
    suite = pytester.path / "suites" / "test_alpha.py"
    suite.write_text(SUITE.replace('"percentile[alpha=0.9]"', '"mse/mix[w8a8*2]", "mse/mix[w8a16]"'))
    assert ids_of(run("--collect-only", "-q")) == ["tiny-model/running_max/1x1", "tiny-model/mse/1x1/mix[w8a16]"]


def test_a_suite_may_be_quick_and_full_still_means_full(run, pytester):
    suite = pytester.path / "suites" / "test_alpha.py"
    suite.write_text(SUITE.replace('"percentile[alpha=0.9]"', '"percentile[alpha=0.9]/channel", quick=True'))
    assert ids_of(run("--collect-only", "-q"))[1] == "tiny-model/percentile[alpha=0.9]/channel/quick"
    assert ids_of(run("--collect-only", "-q", "--qb-full"))[1] == "tiny-model/percentile[alpha=0.9]/channel/full"


RECIPES = """
import pytest

@pytest.mark.cases(
    "mse/channel/w8a6", "percentile/sensitivity[budget=2,floats=1]", "percentile/w4a8/gptq",
    "running_max/w8a8-asymmetric", "percentile/weights=aciq@channel", "percentile/learned[steps=2,length=8]",
    "entropy/uniform", "percentile/channel_state/first_middle_last", "percentile/w4a16/gptq", "running_max/w16a8",
    "percentile/mix[w4a16]/weights=group",
)
def test_alpha(case, judge):
    judge(case)
"""


@pytest.fixture(scope="session")
def recipe_baselines(tmp_path_factory) -> Path:
    """Filled by the first test that needs them recorded; the others copy."""
    return tmp_path_factory.mktemp("recipes") / "baselines"


@pytest.fixture
def recipes(run, recipe_baselines, pytester):
    (pytester.path / "suites" / "test_alpha.py").write_text(RECIPES)
    if recipe_baselines.exists():
        shutil.copytree(recipe_baselines, pytester.path / "baselines")
    else:
        run("--qb-new-only").assert_outcomes(passed=11)
        shutil.copytree(pytester.path / "baselines", recipe_baselines)
    return run


def test_recipes_of_every_kind_are_the_same_again(recipes):
    """Each part of a case survives being stored: same settings, same artefacts, same place in the rows."""
    again = recipes()
    again.assert_outcomes(passed=11)
    assert text(again).count("SAME") == 11


@pytest.mark.parametrize(
    ("fault", "recipe", "place"),
    [
        ("from quambench.int8 import gptq, recipe; recipe.gptq = lambda w, h: gptq.gptq(w, h.flip(0, 1))", "gptq",
         "layers.0.in_proj.weight"),
        ("from quambench.int8 import site_grid as g; old = g.AsymmetricGrid.dequantize; "
         "g.AsymmetricGrid.dequantize = lambda self, q: old(self, q) + self.scale", "asymmetric", "layers.0.in_proj"),
        ("from quambench.observers import entropy as e; e.quantized_entropy = lambda h, t, b: t", "entropy",
         "layers.0.in_proj:input"),
    ],
    ids=["gptq", "asymmetric", "entropy"],
)  # fmt: skip
def test_a_fault_in_a_strategy_turns_its_rows_red_and_no_other(recipes, fault, recipe, place):
    found = recipes(fault=fault)
    red = {x for x in found.outlines if x.startswith(("DRIFTED", "REGRESSED", "INCONCLUSIVE", "IMPROVED"))}
    assert len(red) == (2 if recipe == "gptq" else 1)  # of 8 bits of activations, and of 16
    found.assert_outcomes(passed=11 - len(red), failed=len(red))
    assert all(recipe in row and place in row for row in red)
