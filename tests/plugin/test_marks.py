"""The mark `cases`: what it may say, and the one line that a mistake in it ends in."""

from __future__ import annotations

import re
from contextlib import suppress
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quambench.case import Case
from quambench.core.errors import BadParameter, QuambenchError, UnknownName
from quambench.models.checkpoint import load_checkpoint
from quambench.plugin import marks
from quambench.plugin.marks import Asked, CasesMark, NoCase
from quambench.session.session import Session

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
    "values of its own, by name": (
        f"@pytest.mark.cases('mse')\n@pytest.mark.parametrize(argnames='case', argvalues=['mse'])\n{TEST}",
        "case has values of its own",
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


ANNOUNCED = """
from quambench.pytest_plugin import SESSION

def pytest_collection_finish(session):
    for cases in session.config.stash[SESSION]._cases.values():
        print("announced:", *(case.id for case in cases))
"""


def test_cases_of_one_model_run_together_and_are_announced(run):
    """Whatever tests they are of: one calibration pass then serves them all."""
    mark = "@pytest.mark.cases('{}', language='recall')\n"
    tests = [mark.format("mse") + TEST, mark.format("aciq") + TEST.replace("alpha", "beta"), "def test_other(): pass"]
    result = run("\n\n".join(tests), "--collect-only", "-q", more=ANNOUNCED)
    assert [line.partition("::")[2] for line in result.outlines if "::" in line] == [
        "test_other",
        "test_alpha[mamba-recall/mse/1x1]",
        "test_beta[mamba-recall/aciq/1x1]",
        "test_alpha[mamba2-recall/mse/1x1]",
        "test_beta[mamba2-recall/aciq/1x1]",
    ]
    assert sorted(line for line in result.outlines if line.startswith("announced: ")) == [
        "announced: mamba-recall/mse/1x1 mamba-recall/aciq/1x1",
        "announced: mamba2-recall/mse/1x1 mamba2-recall/aciq/1x1",
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


REFUSED = {
    "a setting that is none": (
        ("mse",), {"quik": True},
        "no setting of the mark cases named 'quik'. Did you mean 'quick'? Known: architecture, language, quick",
    ),
    "no case": (
        (), {},
        'the mark cases must name a case: write @pytest.mark.cases("running_max", "percentile[alpha=0.9995]")',
    ),
    "a number": (
        ("mse", 8), {},
        "the mark cases names each case by a string of its own, "
        '@pytest.mark.cases("running_max", "percentile[alpha=0.9995]") (got 8)',
    ),
    "a language": (("mse",), {"language": "zzz"}, "no language named 'zzz'. Known: prose, recall"),
    "a language that is no text": (("mse",), {"language": 3}, "no language named '3'. Known: prose, recall"),
    "an architecture": (
        ("mse",), {"architecture": "mamba3"},
        "no architecture named 'mamba3'. Did you mean 'mamba'? Known: mamba, mamba2",
    ),
    "an architecture that is no text": (
        ("mse",), {"architecture": 3}, "no architecture named '3'. Known: mamba, mamba2",
    ),
    "a quick that is neither": (
        ("mse",), {"quick": "no"}, "the mark cases: quick must be True or False (got 'no')",
    ),
    "one case twice": (
        ("aciq", "mse", "mse/1x1"), {}, "the mark cases names one case twice, 'mse' and 'mse/1x1': write it once",
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", REFUSED)
def test_a_mark_that_is_refused_says_all_of_this(which):
    args, settings, says = REFUSED[which]
    with pytest.raises(QuambenchError) as refused:
        CasesMark.parse(args, settings)
    assert str(refused.value) == says
    assert type(refused.value) is (UnknownName if says.startswith("no ") else BadParameter)


class Loaded:
    """A session that has loaded two models of prose and one of recall, of one layer, two and one."""

    def __init__(self) -> None:
        self.checkpoints = {
            name: SimpleNamespace(recall=recall, config=SimpleNamespace(architecture=architecture, n_layers=n))
            for name, recall, architecture, n in (
                ("shallow", None, "mamba", 1), ("deep", None, "mamba2", 2), ("memory", {"induction": 8}, "mamba2", 1),
            )
        }  # fmt: skip

    def load(self, name: str):
        return load_checkpoint(name)


THESE = ("shallow", "deep", "memory")
HAS_CASES = {
    "all of prose": ({}, THESE, ("mse", "aciq/channel"), [
        "shallow/mse/1x1", "deep/mse/1x1", "shallow/aciq/channel", "deep/aciq/channel"]),
    "of recall": ({"language": "recall"}, THESE, ("mse",), ["memory/mse/1x1"]),
    "of an architecture": ({"architecture": "mamba2"}, THESE, ("mse",), ["deep/mse/1x1"]),
    "of a depth": ({}, THESE, ("mse/mix[w8a8*2]", "aciq"), [
        "deep/mse/1x1/mix[w8a8*2]", "shallow/aciq/1x1", "deep/aciq/1x1"]),
    "the bundled ones": ({}, (), ("mse",), ["mamba-tiny/mse/1x1", "mamba2-tiny/mse/1x1"]),
    "the bundled ones of recall": (
        {"language": "recall"}, (), ("mse",), ["mamba-recall/mse/1x1", "mamba2-recall/mse/1x1"]),
    "a bundled one": ({"architecture": "mamba2"}, (), ("mse",), ["mamba2-tiny/mse/1x1"]),
    "quick": ({"quick": True}, ("shallow",), ("mse",), ["shallow/mse/1x1/quick"]),
}  # fmt: skip


@pytest.mark.parametrize("which", HAS_CASES)
def test_a_mark_has_one_case_for_each_model_it_is_for(which):
    settings, models, specs, ids = HAS_CASES[which]
    cases = CasesMark.parse(specs, settings).cases(Asked(models=models), Loaded())
    assert [case.id for case in cases] == ids


@pytest.mark.parametrize("quick", [False, True])
def test_what_is_asked_for_in_full_is_never_quick(quick):
    (full,) = CasesMark.parse(("mse",), {"quick": quick}).cases(Asked(models=("deep",), full=True), Loaded())
    assert full.id == "deep/mse/1x1/full"


NO_CASE = {
    "another language": (
        {"language": "recall"}, {"models": ("shallow", "deep")}, NoCase,
        "no case: the mark is for a model of recall, and --qb-model names shallow, deep",
    ),
    "another architecture": (
        {"architecture": "mamba2"}, {"models": ("shallow",)}, NoCase,
        "no case: the mark is for mamba2 of prose, and --qb-model names shallow",
    ),
    "another depth": (
        {}, {"models": ("shallow", "deep")}, NoCase,
        "no case: shallow, deep is of another depth than the mark's precisions",
    ),
    "a depth of no bundled model": (
        {}, {}, BadParameter,
        "'mse/mix[w8a8*99]' is for 99 layers, and no bundled model of the mark has as many "
        "(mamba-tiny has 5, mamba2-tiny has 4)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", NO_CASE)
def test_a_mark_without_a_case_says_whose_doing_that_is(which):
    settings, asked, kind, says = NO_CASE[which]
    with pytest.raises(kind) as told:
        CasesMark.parse(("mse/mix[w8a8*99]",), settings).cases(Asked(**asked), Loaded())
    assert str(told.value) == says


def test_a_mark_for_models_that_nobody_bundles_judges_nothing_and_says_so(monkeypatch):
    monkeypatch.setattr(marks, "bundled_names", lambda language: ("shallow",) if language == "prose" else ())
    for settings, wanted in (({"language": "recall"}, "a model of recall"), ({"architecture": "mamba2"}, "mamba2 of")):
        with pytest.raises(BadParameter) as told:
            CasesMark.parse(("mse",), settings).cases(Asked(), Loaded())
        says = f"the mark cases is for {wanted}{' prose' if wanted.endswith('of') else ''}, and no bundled model is one"
        assert str(told.value) == f"{says}: it judges nothing"


OUTSIDE = f"{__name__}:from_outside"


def from_outside(model, sequences):
    raise AssertionError("a mark only names it")


STANDS_IN = {
    "groupings": ({"groupings": ("channel", "1x1")}, ("mse", "aciq"), [
        "shallow/mse/channel", "shallow/mse/1x1", "shallow/aciq/channel", "shallow/aciq/1x1"]),
    "a precision": ({"precision": "w4a8"}, ("mse", "aciq/w8a4"), ["shallow/mse/1x1/w4a8", "shallow/aciq/1x1/w4a8"]),
    "what comes to one case twice": ({"observers": ("aciq",)}, ("mse", "aciq", "mse/w4a8"), [
        "shallow/aciq/1x1", "shallow/aciq/1x1/w4a8"]),
    "tasks": ({"tasks": ("one", "two")}, ("mse",), ["shallow/mse/1x1/tasks=one+two"]),
    "some of each task": ({"tasks": ("one",), "task_limit": 7}, ("mse",), ["shallow/mse/1x1/tasks=one:7"]),
    "a calibration": ({"calibrations": (OUTSIDE,)}, ("mse/w8a4", "mse", "aciq/channel"), [
        f"shallow/calibration={OUTSIDE}/1x1"]),
}  # fmt: skip


@pytest.mark.parametrize("which", STANDS_IN)
def test_each_option_stands_in_for_what_the_mark_says_and_for_nothing_else(which):
    asked, specs, ids = STANDS_IN[which]
    found = CasesMark.parse(specs, {}).cases(Asked(models=("shallow",), **asked), Loaded())
    assert [case.id for case in found] == ids
    assert Asked(**asked).replaces


def test_no_model_of_recall_is_asked_tasks():
    mark = CasesMark.parse(("mse",), {"language": "recall"})
    (case,) = mark.cases(Asked(models=("memory",), tasks=("one",)), Loaded())
    assert case.id == "memory/mse/1x1"


def test_a_command_line_without_options_replaces_nothing():
    assert Asked() == Asked(
        models=(), observers=(), calibrations=(), groupings=(), precision="", tasks=(), task_limit=0, full=False
    )
    assert not Asked(models=("shallow",), task_limit=3, full=True).replaces


def test_a_calibration_that_stands_in_for_nothing_is_told_whole():
    with pytest.raises(NoCase) as told:
        CasesMark.parse(("mse/w8a4",), {}).cases(Asked(models=("shallow",), calibrations=(OUTSIDE,)), Loaded())
    assert str(told.value) == "no case: --qb-calibration stands in for none of the mark's"


PARTS = ["mse", "percentile", "[", "]", "alpha", "=", "0.5", "/", "1x1", "4x4", "w8a", "mix[", "*", ",", "|", ":",
         ".json", "tasks=", "calibration=", "weights=", "-9", "é", " ", "\n", "nan", "1e999"]  # fmt: skip


@given(st.lists(st.sampled_from(PARTS), max_size=6).map("".join))
def test_whatever_a_spec_says_it_is_a_case_or_one_line(text):
    with suppress(QuambenchError):
        assert Case.parse("", text).id
