"""The mark `cases`: what it may say, and the one line that a mistake in it ends in."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quambench.case import Case
from quambench.errors import BadParameter, QuambenchError
from quambench.marks import Asked, CasesMark, NoCase
from quambench.models.checkpoint import load_checkpoint
from quambench.session import Session

CONFTEST = 'pytest_plugins = ["quambench.pytest_plugin"]\n'


@pytest.fixture(scope="session")
def _loaded(world) -> None:
    """What a run in this process is the first to import is dropped when it ends, and triton cannot be loaded twice."""
    load_checkpoint(str(world / "tiny-model"))


@pytest.fixture
def run(pytester, monkeypatch, _loaded):
    """run(text of test_alpha.py, *options): pytest over it, in this process."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeini("[pytest]")
    suite = pytester.mkdir("suites") / "test_alpha.py"

    def go(text, *options, more=""):
        suite.write_text(f"import pytest\n{text}\n")
        pytester.makeconftest(CONFTEST + more)
        fixed = ["-p", "no:cacheprovider", "-W", "ignore::pytest.PytestUnknownMarkWarning", "-rs"]
        return pytester.runpytest_inprocess("suites", *fixed, *options)

    return go


def lines_of(result) -> list[str]:
    """What pytest says of an error in collecting: the lines under its heading."""
    (start,) = [i for i, line in enumerate(result.outlines) if re.match(r"_+ ERROR collecting ", line)]
    end = next(i for i, line in enumerate(result.outlines) if i > start and re.match(r"[!=_]{3}", line))
    return result.outlines[start + 1 : end]


TEST = "def test_alpha(case, judge): judge(case)"
MISTAKES = {
    "no mark": (TEST, "asks for case and has no mark that names its cases. Write @pytest.mark.cases("),
    "case for cases": (f"@pytest.mark.case('mse')\n{TEST}", "Did you mean cases by the mark 'case'?"),
    "caes for cases": (f"@pytest.mark.caes('mse')\n{TEST}", "Did you mean cases by the mark 'caes'?"),
    "through a fixture": (
        "@pytest.fixture\ndef verdict(case, judge): return judge(case)\ndef test_alpha(verdict): pass", "asks for case",
    ),
    "judge alone": ("def test_alpha(judge): judge('mse')", "it asks for judge and asks for no case: write def test_al"),
    "a mark and no case": ("@pytest.mark.cases('mse')\ndef test_alpha(judge): pass", "has the mark cases and asks for"),
    "a mark and no fixture": ("@pytest.mark.cases('mse')\ndef test_alpha(): pass", "write def test_alpha(case, judge)"),
    "no parentheses": (f"@pytest.mark.cases\n{TEST}", "must name a case"),
    "no spec": (f"@pytest.mark.cases()\n{TEST}", "must name a case: write @pytest.mark.cases("),
    "settings alone": (f"@pytest.mark.cases(quick=True)\n{TEST}", "must name a case"),
    "a parameter": (f"@pytest.mark.cases('percentile', alpha=3)\n{TEST}", "no setting of the mark cases named 'alpha'"),
    "quik": (f"@pytest.mark.cases('mse', quik=True)\n{TEST}", "Did you mean 'quick'?"),
    "specs by name": (f"@pytest.mark.cases(specs=('mse',))\n{TEST}", "no setting of the mark cases named 'specs'"),
    "quick of another kind": (f"@pytest.mark.cases('mse', quick='no')\n{TEST}", "quick must be True or False (got 'no"),
    "a language": (f"@pytest.mark.cases('mse', language='pros')\n{TEST}", "no language named 'pros'. Did you mean 'pr"),
    "no language": (f"@pytest.mark.cases('mse', language=3)\n{TEST}", "no language named '3'"),
    "an architecture": (f"@pytest.mark.cases('mse', architecture='mamba3')\n{TEST}", "no architecture named 'mamba3'"),
    "a number": (f"@pytest.mark.cases('mse', 8)\n{TEST}", "by a string of its own"),
    "a list": (f"@pytest.mark.cases(['mse', 'aciq'])\n{TEST}", "by a string of its own"),
    "an observer": (f"@pytest.mark.cases('mse', 'percentil')\n{TEST}", "Did you mean 'percentile'"),
    "a grouping": (f"@pytest.mark.cases('mse/chanel')\n{TEST}", "Did you mean 'channel'"),
    "a precision": (f"@pytest.mark.cases('mse/w8a9')\n{TEST}", "a precision is written w8a8"),
    "out of its domain": (f"@pytest.mark.cases('percentile[alpha=3]')\n{TEST}", "alpha must be in (0, 1]"),
    "no number": (f"@pytest.mark.cases('percentile[alpha=x]')\n{TEST}", "alpha must be a number"),
    "no file": (f"@pytest.mark.cases('mse/mix[nowhere.json]')\n{TEST}", "nowhere.json"),
    "no module": (f"@pytest.mark.cases('no_such_module:Max')\n{TEST}", "no_such_module"),
    "nothing": (f"@pytest.mark.cases('')\n{TEST}", "is written name or name[key=value,...]"),
    "twice": (f"@pytest.mark.cases('mse', 'mse/1x1')\n{TEST}", "names one case twice, 'mse' and 'mse/1x1': write it"),
    "two marks": (f"@pytest.mark.cases('mse')\n@pytest.mark.cases('aciq')\n{TEST}", "it has 2 marks named cases"),
    "one of the module too": (
        f"pytestmark = pytest.mark.cases('mse')\n@pytest.mark.cases('aciq')\n{TEST}", "its class's and module's includ",
    ),
    "values of its own": (
        f"@pytest.mark.cases('mse')\n@pytest.mark.parametrize('case', ['mse'])\n{TEST}", "case has values of its own",
    ),
    "a fixture of its own": (f"@pytest.fixture\ndef case(): return 'mse'\n{TEST}", "case has values of its own"),
    "a depth of no model": (
        f"@pytest.mark.cases('mse', 'mse/mix[w8a8*99]')\n{TEST}", "'mse/mix[w8a8*99]' is for 99 layers, and no bundled",
    ),
    "in a class": (
        "class TestAlpha:\n    @pytest.mark.case('mse')\n    def test_alpha(self, case, judge): pass", "Did you mean",
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", MISTAKES)
def test_a_mistake_is_one_line_that_says_where_and_red(run, which):
    suite, says = MISTAKES[which]
    result = run(suite)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    (line,) = lines_of(result)
    where = (
        "suites/test_alpha.py::TestAlpha::test_alpha: " if "class" in suite else "suites/test_alpha.py::test_alpha: "
    )
    assert line.startswith(where)
    assert says in line


def test_a_mistake_is_red_where_collecting_goes_on_and_where_another_model_is_asked_for(run):
    suite = f"@pytest.mark.cases('mse', quik=True)\n{TEST}\n"
    assert run(suite, "--continue-on-collection-errors").ret == 1
    assert run(suite, "--qb-model", "mamba-recall").ret == pytest.ExitCode.INTERRUPTED
    assert run(f"@pytest.mark.cases('mse', 'percentil')\n{TEST}", "--qb-model", "mamba-recall").ret == 2


def test_a_marks_own_model_may_be_missing_rightly(run):
    """Another language or architecture than the model's that is asked for: skipped, with the reason."""
    for mark, reason in (
        ("'mse'", "a model of prose, and --qb-model names mamba-recall"),
        ("'mse', language='recall', architecture='mamba2'", "mamba2 of recall, and --qb-model names mamba-recall"),
        ("'mse/mix[w8a8*99]', language='recall'", "mamba-recall is of another depth than the mark's precisions"),
    ):
        result = run(f"@pytest.mark.cases({mark})\n{TEST}", "--qb-model", "mamba-recall")
        result.assert_outcomes(skipped=1)
        assert reason in "\n".join(result.outlines)
        assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED  # nothing was judged


def test_other_tests_may_call_things_case_and_probe(run):
    others = """
@pytest.mark.parametrize("case, n", [("upper", 1), ("lower", 2)])
def test_of_letters(case, n): assert case in ("upper", "lower")

@pytest.mark.parametrize(["probe"], [("x-ray",)])
def test_of_doctors(probe): assert probe == "x-ray"

class TestCourt:
    @pytest.fixture
    def case(self): return "Marbury v. Madison"

    def test_of_lawyers(self, case): assert "v." in case
"""
    result = run(others)
    result.assert_outcomes(passed=4)
    assert result.ret == 0
    result = run(
        "def test_of_lawyers(case): assert case == 3", more="import pytest\n@pytest.fixture\ndef case(): return 3"
    )
    result.assert_outcomes(passed=1)


JUDGE = "import pytest\n@pytest.fixture\ndef judge({}): return len"
PROBE = JUDGE.replace("judge", "judge_probe")


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("def test_of_courts(judge): assert judge('ab') == 2", JUDGE.format("")),
        (f"{JUDGE.format('')}\ndef test_of_courts(judge): assert judge('ab') == 2", ""),
        ("@pytest.mark.parametrize('judge', [len])\ndef test_of_courts(judge): assert judge('ab') == 2", ""),
        ("def test_of_courts(judge_probe): assert judge_probe('ab') == 2", PROBE.format("")),
    ],
    ids=["conftest", "module", "parametrize", "judge_probe"],
)
def test_a_judge_of_ones_own_is_nobody_elses(run, text, more):
    """Nothing was asked of the gate, so that nothing is missing either."""
    result = run(text, more=more)
    result.assert_outcomes(passed=1)
    assert result.ret == 0


def test_a_judge_around_the_plug_ins_is_the_plug_ins(run):
    result = run("def test_alpha(judge): judge('mse')", more=JUDGE.format("judge"))
    assert "asks for judge and asks for no case" in "\n".join(result.outlines)
    assert result.ret != 0


@pytest.mark.parametrize("where", ["class", "module"])
def test_a_mark_may_stand_on_a_class_or_a_module(run, where):
    mark = "pytest.mark.cases('mse', 'aciq', language='recall', architecture='mamba')"
    inside = "    def test_alpha(self, case, judge): judge(case)"
    suite = {"class": f"@{mark}\nclass TestAlpha:\n{inside}", "module": f"pytestmark = {mark}\n{TEST}"}[where]
    result = run(suite, "--collect-only", "-q")
    assert [line.partition("[")[2] for line in result.outlines if "::test_alpha[" in line] == [
        "mamba-recall/mse/1x1]",
        "mamba-recall/aciq/1x1]",
    ]


@pytest.fixture
def session(tmp_path, world) -> Session:
    session = Session(tmp_path / "baselines", world / "corpus")
    session.load(str(world / "tiny-model"))
    return session


def test_what_is_asked_for_stands_in_for_the_suites_own(session):
    mark = CasesMark.parse(("mse", "aciq/channel"), {})
    asked = Asked(models=("tiny-model",), observers=("entropy", "running_max"), precision="w8a4")
    assert [case.id for case in mark.cases(asked, session)] == [
        "tiny-model/entropy/1x1/w8a4",
        "tiny-model/running_max/1x1/w8a4",
        "tiny-model/entropy/channel/w8a4",
        "tiny-model/running_max/channel/w8a4",
    ]
    assert asked.replaces
    assert not Asked(models=("tiny-model",), full=True).replaces


def test_a_calibration_that_fits_none_of_a_marks_cases_is_no_mistake(session):
    mark = CasesMark.parse(("mse/w8a4",), {})
    with pytest.raises(NoCase, match="--qb-calibration"):
        mark.cases(Asked(models=("tiny-model",), calibrations=("anything:at_all",)), session)


def test_a_bundled_model_is_as_deep_as_a_mix_or_the_mark_is_refused(session):
    deep = load_checkpoint("mamba-tiny").config.n_layers
    fits = CasesMark.parse((f"mse/mix[w8a8*{deep}]",), {"architecture": "mamba"})
    assert [case.model for case in fits.cases(Asked(), session)] == ["mamba-tiny"]
    with pytest.raises(BadParameter, match=f"is for {deep + 1} layers"):
        CasesMark.parse((f"mse/mix[w8a8*{deep + 1}]",), {"architecture": "mamba"}).cases(Asked(), session)


PARTS = ["mse", "percentile", "[", "]", "alpha", "=", "0.5", "/", "1x1", "4x4", "w8a", "mix[", "*", ",", "|", ":",
         ".json", "tasks=", "calibration=", "weights=", "-9", "é", " ", "\n", "nan", "1e999"]  # fmt: skip


@given(st.lists(st.sampled_from(PARTS), max_size=6).map("".join))
def test_whatever_a_spec_says_it_is_a_case_or_one_line(text):
    with suppress(QuambenchError):
        assert Case.parse("", text).id
