"""What is stored and was not judged: gone, or unknown. The measurements are the stored ones; pytest is the real one."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import pytest

from quambench.case import Case, Protocol
from quambench.session.session import Session

SMALL = Protocol(
    calib_windows=4, calib_length=16, quality_windows=4, quality_length=16, decode_windows=4, decode_prefix=4,
    decode_steps=4, error_windows=2, error_length=16, max_items=4,
)  # fmt: skip
CONFTEST = """
import dataclasses
import pytest
from pathlib import Path
from quambench.gate import probes
from quambench.gate.baselines import read_baseline
from quambench.gate.verdicts import Status, Verdict
from quambench.models import checkpoint
from quambench.session.session import Session

pytest_plugins = ["quambench.pytest_plugin"]
{more}

def judged(self, suite, case):
    record = next(iter(read_baseline(Path({record!r})).values()))
    stored = self._stored(suite, case)
    known = stored is not None and case.id in stored.cases
    status = Status.REGRESSED if str(case.observer) in {red!r} else Status.SAME if known else Status.NEW
    verdict = Verdict(case.id, status, "", metrics=record.metrics, stored=record.metrics)
    if status is Status.REGRESSED or not (self.update or (self.new_only and not known)):
        return verdict
    record = dataclasses.replace(record, case_id=case.id)
    self.to_write.setdefault((suite, case.model), []).append((case, record))
    return dataclasses.replace(verdict, written=True)


def answers(*, only=None):
    names = only or [probe.name for probe in probes.all_probes()] + ["unit/gone"]
    return [probes.ProbeResult(n, "gone" if n == "unit/gone" else "same", "no probe asks") for n in names]


def pytest_configure(config):
    patch = pytest.MonkeyPatch()
    patch.setattr(checkpoint, "_zoo", lambda: Path({zoo!r}))
    patch.setattr(Session, "_judge", judged)
    patch.setattr(Session, "_measured_elsewhere", lambda self, model: {{}})
    patch.setattr(probes, "check", answers)
    config.add_cleanup(patch.undo)
"""
ALPHA = """
import pytest

@pytest.mark.cases("running_max", "percentile[alpha=0.9]")
def test_alpha(case, judge):
    judge(case)
"""
BETA = ALPHA.replace("alpha(", "beta(")
FEWER = ALPHA.replace('"running_max", ', "")  # a real orphan: running_max, stored before
RUNNING_MAX, PERCENTILE = "tiny-model/running_max/1x1", "tiny-model/percentile[alpha=0.9]/1x1"


@pytest.fixture(scope="session")
def record(world, tmp_path_factory) -> Path:
    """A baseline file with one real record."""
    session = Session(tmp_path_factory.mktemp("record"), world / "corpus", new_only=True)
    case = Case.parse(session.load(str(world / "tiny-model")).name, "running_max", SMALL)
    session.plan([case])
    session.judge("alpha", case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "_measured_elsewhere", lambda self, model: {})
        (path,) = session.write()
    return path


@pytest.fixture
def run(pytester, monkeypatch, world, record):
    """run(*options): pytest over suites/, in this process; the bundled model is the tiny one."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # others' plug-ins load anew in each run
    pytester.makeini("[pytest]")
    suites = pytester.mkdir("suites")
    (suites / "test_alpha.py").write_text(ALPHA)
    (suites / "test_beta.py").write_text(BETA)

    def go(*options, more="", red=(), args=("suites",), workers=0):
        conftest = CONFTEST.format(more=more, red=tuple(red), record=str(record), zoo=str(world))
        (pytester.path / "conftest.py").write_text(conftest)
        # A run has its own filters of warnings, not those that these tests run under.
        fixed = ["-p", "no:cacheprovider", "--import-mode=importlib", "-rs", "-W", "default"]
        if not workers:
            return pytester.runpytest_inprocess(*args, *fixed, *options, no_reraise_ctrlc=True)
        return pytester.runpytest_subprocess(*args, *fixed, "-p", "xdist", "-n", str(workers), *options)

    return go


def text(result) -> str:
    return "\n".join(result.outlines + result.errlines)


def stored(pytester, suite="alpha") -> set[str]:
    """Ids in the suite's file; none where there is no file."""
    return {
        case_id
        for file in (pytester.path / "baselines").glob(f"{suite}/*/tiny-model.json")
        for case_id in json.loads(file.read_text())["cases"]
    }


@pytest.fixture(scope="session")
def all_stored(tmp_path_factory) -> Path:
    """Baselines of both suites: filled by the first test that needs them, copied by the others."""
    return tmp_path_factory.mktemp("stored") / "baselines"


@pytest.fixture
def whole(run, pytester, all_stored):
    """`run`, with all cases stored."""
    if not all_stored.exists():
        assert run("--qb-new-only").ret == 0
        assert stored(pytester) == {RUNNING_MAX, PERCENTILE}
        shutil.copytree(pytester.path / "baselines", all_stored)
    else:
        shutil.copytree(all_stored, pytester.path / "baselines")
    return run


@pytest.fixture
def recorded(whole, pytester):
    """`whole`; then running_max is taken out of the suite alpha."""
    (pytester.path / "suites" / "test_alpha.py").write_text(FEWER)
    return whole


# -- twins: what is gone is ORPHAN, and an update removes it --------------------------------------------


def test_a_case_that_its_suite_ran_without_is_an_orphan_and_an_update_removes_it(recorded, pytester):
    result = recorded()
    assert result.ret == 1
    assert f"ORPHAN {RUNNING_MAX}: stored, but no case produces it" in text(result)
    assert text(result).count(f"ORPHAN {RUNNING_MAX}") == 1  # of the suite beta it is produced
    assert recorded("--qb-update").ret == 0
    assert stored(pytester) == {PERCENTILE}
    assert stored(pytester, "beta") == {RUNNING_MAX, PERCENTILE}
    assert recorded().ret == 0


@pytest.mark.parametrize("now", [None, "test_renamed.py", "_test_alpha.py"])
def test_a_suite_whose_file_is_gone_is_orphaned_where_the_whole_folder_was_asked_for(recorded, pytester, now):
    file = pytester.path / "suites" / "test_alpha.py"
    file.rename(file.with_name(now)) if now else file.unlink()
    result = recorded()
    assert result.ret == 1
    assert f"ORPHAN {RUNNING_MAX}" in text(result)
    assert f"ORPHAN {PERCENTILE}" in text(result)
    recorded("--qb-update")
    assert stored(pytester) == set()
    assert stored(pytester, "beta") == {RUNNING_MAX, PERCENTILE}


@pytest.mark.parametrize(
    "options",
    [["-k", "beta"], ["--qb-model", "tiny-model"], ["--deselect", "suites/test_beta.py::x"], ["suites/test_beta.py"]],
)
def test_a_suite_whose_file_is_gone_is_not_orphaned_by_a_run_of_less(recorded, pytester, options):
    (pytester.path / "suites" / "test_alpha.py").unlink()
    args = () if options[0].startswith("suites") else ("suites",)
    assert "ORPHAN" not in text(recorded("--qb-update", *options, args=args))
    assert stored(pytester) == {RUNNING_MAX, PERCENTILE}


def test_a_suite_that_has_no_test_left_is_orphaned(recorded, pytester):
    (pytester.path / "suites" / "test_alpha.py").write_text("")
    assert text(recorded()).count("\nORPHAN ") == 2


def test_an_orphan_is_found_beside_a_suite_that_is_unknown(recorded, pytester):
    (pytester.path / "suites" / "test_beta.py").write_text(SKIPPED_MODULE + BETA)
    result = recorded("--qb-update")
    assert f"ORPHAN {RUNNING_MAX}" in text(result) or "ORPHAN (written)" in text(result)
    assert "beta: 2 stored case(s) were not judged: test_beta.py was skipped" in text(result)
    assert stored(pytester) == {PERCENTILE}
    assert stored(pytester, "beta") == {RUNNING_MAX, PERCENTILE}


def test_a_run_for_another_model_leaves_what_the_bundled_ones_have_stored_alone(recorded, pytester):
    """And the other way round: what was stored with --qb-model, no run of the bundled models can produce."""
    for file in (pytester.path / "baselines").glob("alpha/*/tiny-model.*"):
        shutil.copy(file, file.with_name(file.name.replace("tiny-model", "mine")))
    recorded("--qb-update")
    result = recorded()
    assert result.ret == 0
    assert "what is stored for mine was not judged: --qb-model asks for it" in text(result)
    assert list((pytester.path / "baselines").glob("alpha/*/mine.json"))


# -- unknown: nothing is ORPHAN, nothing is removed -----------------------------------------------------

SKIPPED_MODULE = "import pytest\npytest.skip('not here', allow_module_level=True)\n"
IN_CLASS = """
import pytest

class TestAlpha:
    {first}

    @pytest.mark.cases("percentile[alpha=0.9]")
    def test_alpha(self, case, judge):
        judge(case)
"""
ANOTHER = """
{mark}
def test_another({fixtures}):
    {body}
"""


def another(mark="", fixtures="", body="pass") -> str:
    """The suite, with one more test that may produce the case that is missing, or may not."""
    return FEWER + ANOTHER.format(mark=mark, fixtures=fixtures, body=body)


UNKNOWN = {
    "a module skip": (SKIPPED_MODULE + FEWER, "", (), "test_alpha.py was skipped"),
    "importorskip": ("import pytest\npytest.importorskip('no_such_module')\n" + FEWER, "", (), "was skipped"),
    "an import error": ("import no_such_module\n" + FEWER, "", ("--continue-on-collection-errors",), "could not be"),
    "a syntax error": (FEWER + "def (", "", ("--continue-on-collection-errors",), "could not be collected"),
    "a mark's error": (
        FEWER.replace("alpha=0.9", "alpa=0.9"), "", ("--continue-on-collection-errors",), "could not be collected",
    ),
    "collect_ignore": (FEWER, "collect_ignore = ['suites/test_alpha.py']", (), "test_alpha.py was not collected"),
    "collect_ignore_glob": (FEWER, "collect_ignore_glob = ['*alpha*']", (), "test_alpha.py was not collected"),
    "an ignoring hook": (
        FEWER, "def pytest_ignore_collect(collection_path): return 'alpha' in collection_path.name or None", (),
        "test_alpha.py was not collected",
    ),
    "--ignore": (FEWER, "", ("--ignore=suites/test_alpha.py",), "test_alpha.py was not collected"),
    "--ignore-glob": (FEWER, "", ("--ignore-glob=*alpha*",), "test_alpha.py was not collected"),
    "other file names": (FEWER, "", ("-o", "python_files=test_b*.py"), "test_alpha.py was not collected"),
    "--deselect": (another(), "", ("--deselect=suites/test_alpha.py::test_another",), ""),
    "-k": (FEWER, "", ("-k", "alpha or beta"), ""),
    "-m": (FEWER, "", ("-m", "cases"), ""),
    "a hook that drops tests": (
        another(), "def pytest_collection_modifyitems(items): items[:] = [i for i in items if 'another' not in i.name]",
        (), "test_another did not run",
    ),
    "a wrapping hook that drops tests": (
        another(),
        "@pytest.hookimpl(wrapper=True, tryfirst=True)\n"
        "def pytest_collection_modifyitems(items):\n"
        "    items[:] = [i for i in items if 'another' not in i.name]\n    return (yield)",
        (), "test_another did not run",
    ),
    "a skip mark": (another("@pytest.mark.skip"), "", (), "test_another was skipped"),
    "a skip inside": (another(body="pytest.skip('not now')"), "", (), "test_another was skipped"),
    "a skipping fixture": (
        another(fixtures="gpu"), "@pytest.fixture\ndef gpu(): pytest.skip('none')", (), "test_another was skipped",
    ),
    "an xfail that does not run": (another("@pytest.mark.xfail(run=False)"), "", (), "test_another did not run"),
    "a crashing fixture": (
        another(fixtures="gpu"), "@pytest.fixture\ndef gpu(): 1 / 0", (), "test_another did not run",
    ),
    "a class that is skipped": (
        IN_CLASS.format(first="pytestmark = pytest.mark.skip('no')"), "", (), "was skipped",
    ),
    "a class with __init__": (IN_CLASS.format(first="def __init__(self): pass"), "", (), "in its class TestAlpha"),
    "a class that is no test": (IN_CLASS.format(first="__test__ = False"), "", (), "__test__ = False"),
    "a module that is no test": ("__test__ = False\n" + FEWER, "", (), "__test__ = False"),
    "a stop at the first failure": (
        "def test_first(): assert 0\n" + another(), "", ("-x",), "did not run",
    ),
    "an exit from inside": (another(body="pytest.exit('enough', returncode=0)"), "", (), ""),
    "Ctrl-C": (another(body="raise KeyboardInterrupt"), "", (), ""),
}  # fmt: skip


@pytest.mark.parametrize("how", UNKNOWN)
def test_what_was_not_collected_or_did_not_run_is_neither_gone_nor_removed(recorded, pytester, how):
    suite, more, options, why = UNKNOWN[how]
    (pytester.path / "suites" / "test_alpha.py").write_text(suite)
    result = recorded("--qb-update", *options, more=more)
    assert "ORPHAN" not in text(result)
    if why:
        (note,) = {line for line in result.outlines if line.startswith("alpha: ")}
        assert re.match(r"alpha: [12] stored case\(s\) were not judged: ", note)
        assert why in note
    assert stored(pytester) == {RUNNING_MAX, PERCENTILE}
    assert stored(pytester, "beta") == {RUNNING_MAX, PERCENTILE}


def test_a_folder_that_pytest_does_not_enter_is_not_gone(recorded, pytester):
    (pytester.path / "suites" / "test_alpha.py").rename(pytester.mkdir("suites/attic") / "test_alpha.py")
    result = recorded("-o", "norecursedirs=attic", "--qb-update")
    assert "test_alpha.py was not collected" in text(result)
    assert stored(pytester) == {RUNNING_MAX, PERCENTILE}
    assert f"ORPHAN {RUNNING_MAX}" in text(recorded())  # entered, it is judged


def test_a_suite_beside_the_suites_folder_is_not_gone(recorded, pytester):
    (pytester.path / "suites" / "test_alpha.py").rename(pytester.mkdir("more") / "test_alpha.py")
    result = recorded("--qb-update")
    assert "alpha: 2 stored case(s) were not judged: it may be more/test_alpha.py, which was not" in text(result)
    assert stored(pytester) == {RUNNING_MAX, PERCENTILE}
    (pytester.path / "more" / "test_alpha.py").write_text("def test_something_else(): pass")
    assert f"ORPHAN {RUNNING_MAX}" in text(recorded())  # a module of that name, and no suite


def test_a_test_of_something_else_that_has_a_suites_name_asks_for_no_verdict(recorded, pytester):
    """tests/grouping/test_groups.py is no part of suites/test_groups.py: a run of it is green, whatever is stored."""
    (pytester.mkdir("tests") / "test_alpha.py").write_text("def test_something_else(): pass")
    result = recorded(args=("tests",))
    assert result.ret == 0
    assert "not judged" not in text(result)
    (pytester.path / "tests" / "test_alpha.py").write_text(SKIPPED_MODULE + FEWER)  # this one is, and says nothing
    assert recorded(args=("tests",)).ret == 5


def test_a_suite_in_two_files_is_judged_by_both(recorded, pytester):
    """Each folder's test_alpha.py is the suite alpha."""
    (pytester.mkdir("suites/more") / "test_alpha.py").write_text(ALPHA.replace(', "percentile[alpha=0.9]"', ""))
    assert recorded().ret == 0
    assert "more/test_alpha.py" not in text(recorded(args=("suites/test_alpha.py",)))
    assert "ORPHAN" not in text(recorded(args=("suites/test_alpha.py",)))
    assert stored(pytester) == {RUNNING_MAX, PERCENTILE}


def test_failed_first_and_last_failed_remove_nothing(recorded, pytester):
    """--lf leaves tests and whole files out without telling; --ff runs all, and judges."""
    (pytester.path / "suites" / "test_alpha.py").write_text(FEWER + "\ndef test_fails(): assert 0\n")
    cached = ("-p", "cacheprovider")
    recorded(*cached)
    for option in ("--lf", "--sw"):
        assert "ORPHAN" not in text(recorded(*cached, option, "--qb-update"))
        assert stored(pytester) == {RUNNING_MAX, PERCENTILE}
    assert f"ORPHAN {RUNNING_MAX}" in text(recorded(*cached, "--ff"))


JUDGING_FIXTURE = """
import pytest

@pytest.fixture
def verdict(case, judge):
    return judge(case)

@pytest.mark.cases("percentile[alpha=0.9]", "mse")
def test_alpha(verdict):
    pass
"""


@pytest.mark.parametrize(
    "option",
    ["--collect-only", "--setup-only", "--setup-plan", "--fixtures", "--fixtures-per-test", "--markers", "--help",
     "--version", "--cache-show"],
)  # fmt: skip
def test_looking_judges_and_writes_nothing(recorded, pytester, option):
    (pytester.path / "suites" / "test_alpha.py").write_text(JUDGING_FIXTURE)
    before = {p: p.read_bytes() for p in (pytester.path / "baselines").rglob("*.*")}
    result = recorded("-p", "cacheprovider", option, "--qb-update", "--qb-report", "x.md")
    assert result.ret == 0
    assert not {line for line in result.outlines if re.match(r"=+ quambench =+|ORPHAN|NEW|written|report: ", line)}
    assert {p: p.read_bytes() for p in (pytester.path / "baselines").rglob("*.*")} == before
    assert not (pytester.path / "x.md").exists()
    recorded("--qb-update")  # judged, in set-up as anywhere
    assert stored(pytester) == {PERCENTILE, "tiny-model/mse/1x1"}


PROBES = "def test_probe(probe, judge_probe): judge_probe(probe)\n"


def test_an_answer_that_no_probe_asks_for_is_an_orphan_of_whole_runs_alone(recorded, pytester):
    (pytester.path / "suites" / "test_alpha.py").write_text(ALPHA)
    (pytester.path / "suites" / "test_probes.py").write_text(PROBES)
    assert "ORPHAN probe/unit/gone" in text(recorded())
    assert "unit/gone" not in text(recorded("-k", "probe"))
    drops = "def pytest_collection_modifyitems(items): del items[3:]"
    assert "unit/gone" not in text(recorded(more=drops))


# -- a file that cannot be read is replaced by a run of all its cases -----------------------------------


@pytest.fixture
def broken(whole, pytester) -> Path:
    """The suite's file, cut short."""
    (file,) = (pytester.path / "baselines").glob("alpha/*/tiny-model.json")
    file.write_text(file.read_text()[:-30])
    return file


def test_a_whole_update_replaces_a_file_that_cannot_be_read(run, broken, pytester):
    assert run("--qb-update").ret == 0
    assert stored(pytester) == {RUNNING_MAX, PERCENTILE}


@pytest.mark.parametrize(
    ("suite", "more", "options"),
    [
        (ALPHA, "", ("-k", "running_max")),
        (ALPHA, "", ("--deselect", f"suites/test_alpha.py::test_alpha[{PERCENTILE}]")),
        (ALPHA, "", ("--qb-observer", "mse")),  # other cases than the suite's
        (ALPHA, "def pytest_collection_modifyitems(items): del items[1:]", ()),
        (ALPHA.replace("    judge", "    if 'alpha' in case.id: pytest.skip('no')\n    judge"), "", ()),
        (ALPHA.replace("    judge", "    if 'alpha' in case.id: raise OSError\n    judge"), "", ()),
        (another("@pytest.mark.skip"), "", ()),
    ],
    ids=["-k", "--deselect", "--qb-observer", "a hook", "a skip", "a crash", "a skipped test"],
)
def test_a_run_of_some_of_its_cases_replaces_no_file(run, broken, pytester, suite, more, options):
    (pytester.path / "suites" / "test_alpha.py").write_text(suite)
    before = broken.read_bytes()
    result = run("--qb-update", *options, more=more)
    assert result.ret == 1
    assert "replacing it takes a run of all the suite's own cases" in text(result)
    assert broken.read_bytes() == before


@pytest.mark.parametrize("other", ["full", "tasks=prose_lambada"])
def test_a_file_that_names_another_kind_of_runs_cases_is_not_replaced(run, broken, other):
    broken.write_text(broken.read_text().replace(f'"{PERCENTILE}": {{', f'"{PERCENTILE}/{other}": {{'))
    before = broken.read_bytes()
    result = run("--qb-update")
    assert result.ret == 1
    assert f"would lose the case {PERCENTILE}/{other} that another kind of run measures" in text(result)
    assert broken.read_bytes() == before


def test_a_removal_that_another_classes_broken_file_stops_is_told(recorded, pytester):
    (own,) = (pytester.path / "baselines" / "alpha").glob("*")
    other = shutil.copytree(own, own.with_name("cpu-another-class")) / "tiny-model.json"
    other.write_text("{")
    result = recorded("--qb-update")
    assert result.ret == 1
    assert "not removed everywhere" in text(result)
    assert "Traceback" not in text(result)


# -- green by accident ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "suite",
    [
        ALPHA.replace("def", "@pytest.mark.skip\ndef"),
        ALPHA.replace("    judge(case)", "    pytest.skip('not now')"),
        SKIPPED_MODULE + ALPHA,
    ],
    ids=["skip marks", "skips inside", "module skips"],
)
def test_a_run_that_judged_nothing_is_not_green(recorded, pytester, suite):
    for name in ("alpha", "beta"):
        (pytester.path / "suites" / f"test_{name}.py").write_text(suite)
    (pytester.path / "suites" / "test_other.py").write_text("def test_other(): pass")
    result = recorded("--qb-update")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "nothing was judged" in text(result)
    assert stored(pytester) == stored(pytester, "beta") == {RUNNING_MAX, PERCENTILE}
    assert recorded("-k", "other").ret == 0  # nothing was asked for


@pytest.mark.parametrize(
    ("suite", "says"),
    [
        (ALPHA.replace("    judge(case)", "    pass"), "judged nothing: write judge(case) in it"),
        (ALPHA.replace("case, judge", "case").replace("    judge(case)", "    pass"), "judged nothing: write judge("),
        (PROBES.replace("judge_probe(probe)\n", "pass\n"), "judged nothing: write judge_probe(probe) in it"),
        (PROBES.replace("judge_probe(probe)\n", "judge_probe('grid/scal')\n"), "Did you mean 'grid/scale'?"),
        (ALPHA.replace("judge(case)\n", "judge(case.id)\n"), "judge takes the case of its own test"),
        (ALPHA.replace("judge(case)\n", "judge(type(case).parse('tiny-model', 'mse'))\n"), "of its own test"),
    ],
)
def test_a_test_that_judges_nothing_or_another_thing_fails_in_one_line(run, pytester, suite, says):
    (pytester.path / "suites" / "test_alpha.py").write_text(suite)
    (pytester.path / "suites" / "test_beta.py").unlink()
    result = run("--qb-new-only")
    result.assert_outcomes(failed=result.parseoutcomes()["failed"])
    assert result.ret == 1
    assert says in text(result)
    assert "Traceback" not in text(result)


def test_a_case_that_is_asked_for_twice_is_judged_once(run, pytester):
    (pytester.path / "suites" / "test_beta.py").unlink()
    again = ALPHA.replace("test_alpha(", "test_again(n, ").replace("@", "@pytest.mark.parametrize('n', [1, 2])\n@")
    twice = ALPHA + again
    (pytester.path / "suites" / "test_alpha.py").write_text(twice)
    assert run("--qb-new-only").ret == 0
    result = run(red=["running_max"])
    result.assert_outcomes(failed=3, passed=3)
    assert sum(line.startswith("tiny-model/running_max/1x1") for line in result.outlines) == 1


def test_a_test_that_fails_says_its_verdict(recorded):
    result = recorded(red=["running_max"])
    at = next(i for i, line in enumerate(result.outlines) if line.startswith("____"))
    assert result.outlines[at + 1] == f"REGRESSED {RUNNING_MAX}: "


def test_how_to_record_cases_is_told_where_some_are_new_and_nowhere_else(run, pytester):
    advice = "4 case(s) without a baseline; record them: add --qb-new-only to this command"
    assert advice in run().outlines
    recording = run("--qb-new-only", "--qb-report", "reports/x.md", "--qb-report", "x.json")
    assert "without a baseline" not in text(recording)
    assert "report: reports/x.md" in recording.outlines
    assert RUNNING_MAX in (pytester.path / "reports" / "x.md").read_text()
    assert RUNNING_MAX in (pytester.path / "x.json").read_text()
    assert "without a baseline" not in text(run())


def test_input_that_is_no_use_ends_the_run_in_one_line(run, pytester):
    spoilt = """
from quambench.core.errors import BadCorpus
from quambench.session.session import Session

def no_text(self, suite, case):
    raise BadCorpus("no text at all")

Session._judge = no_text  # put back with what the conftest exchanges
"""
    (pytester.path / "suites" / "test_alpha.py").write_text(spoilt + ALPHA)
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert [line.strip("! ") for line in result.outlines if "no text" in line] == [
        "_pytest.outcomes.Exit: quambench: no text at all"
    ]
    assert "Traceback" not in text(result)


XFAIL = ALPHA.replace("def", "@pytest.mark.xfail(reason='known since May'{more})\ndef")


@pytest.mark.parametrize("more", ["", ", strict=True"])
def test_an_authors_xfail_passes_a_regression_and_shows_it(recorded, pytester, more):
    (pytester.path / "suites" / "test_alpha.py").write_text(XFAIL.format(more=more))
    (pytester.path / "suites" / "test_beta.py").write_text(BETA.replace('"running_max", ', ""))
    recorded("--qb-update")
    result = recorded(red=["running_max"], args=("suites/test_alpha.py",))
    assert result.ret == (1 if more else 0)  # strict: the other case passes, which its author did not expect
    assert f"REGRESSED {RUNNING_MAX} passes: its test is marked xfail (known since May)" in text(result)
    assert "passes: its test" not in text(recorded())


@pytest.mark.parametrize(
    "body",
    [
        "try: judge(case)\n    except BaseException: pass",
        "try: judge(case)\n    except BaseException: pytest.skip('never mind')",
        "with pytest.raises(pytest.fail.Exception): judge(case)",
    ],
)
def test_a_verdict_that_its_test_swallows_fails_the_run(recorded, pytester, body):
    suite = FEWER.replace("percentile[alpha=0.9]", "running_max").replace("judge(case)", body)
    (pytester.path / "suites" / "test_alpha.py").write_text(suite)
    result = recorded(red=["running_max"], args=("suites/test_alpha.py",))
    assert result.ret == 1
    assert f"REGRESSED {RUNNING_MAX} fails the run: suites/test_alpha.py::test_alpha" in text(result)


# -- the same with workers ------------------------------------------------------------------------------


def test_with_workers_a_skipped_suite_is_unknown_and_another_ones_orphan_is_removed(recorded, pytester):
    (pytester.path / "suites" / "test_beta.py").write_text(SKIPPED_MODULE + BETA)
    result = recorded("--qb-update", workers=2)
    assert "beta: 2 stored case(s) were not judged: test_beta.py was skipped" in text(result)
    assert stored(pytester) == {PERCENTILE}
    assert stored(pytester, "beta") == {RUNNING_MAX, PERCENTILE}


def test_what_a_crashed_worker_would_have_produced_is_unknown(recorded, pytester):
    (pytester.path / "suites" / "test_alpha.py").write_text(another(body="import os; os._exit(3)"))
    result = recorded("--qb-update", workers=1)
    assert result.ret == 1
    assert "crashed: what it was doing is lost, and what it had finished is not" in text(result)
    assert "ORPHAN" not in text(result)
    assert "INTERNALERROR" not in text(result)
    assert stored(pytester) == stored(pytester, "beta") == {RUNNING_MAX, PERCENTILE}


def test_with_workers_an_xfail_is_shown_and_a_swallowed_verdict_red(recorded, pytester):
    (pytester.path / "suites" / "test_alpha.py").write_text(XFAIL.format(more=""))
    swallowing = BETA.replace("judge(case)\n", "try: judge(case)\n    except BaseException: pass\n")
    (pytester.path / "suites" / "test_beta.py").write_text(swallowing)
    result = recorded(red=["running_max"], workers=1)
    assert result.ret == 1
    assert f"REGRESSED {RUNNING_MAX} passes: its test is marked xfail" in text(result)
    assert f"REGRESSED {RUNNING_MAX} fails the run: suites/test_beta.py::test_beta" in text(result)


# -- how a run ends -------------------------------------------------------------------------------------


def test_without_an_ini_file_baselines_stand_beside_the_conftest_that_loads_the_plug_in(run, pytester, world):
    """A word that is a path moves pytest's root: the corpus and the suites have a folder above both in common."""
    (pytester.path / "tox.ini").unlink()
    result = run("--qb-new-only", "--qb-corpus", str(world / "corpus"))
    assert result.ret == 0
    assert stored(pytester) == {RUNNING_MAX, PERCENTILE}
    assert any(line.startswith("written: baselines/alpha/") for line in result.outlines)
    result = run("--qb-corpus", str(world / "corpus"), f"--rootdir={world}")
    assert result.ret == 0
    assert "NEW" not in text(result)


@pytest.mark.parametrize(
    ("options", "more", "args", "workers"),
    [
        (("--keep-duplicates",), "", ("suites", "suites"), 0),
        (("--dist", "each"), "", ("suites",), 2),
        (
            (), "def pytest_runtest_protocol(item, nextitem):\n    from _pytest.runner import runtestprotocol as go\n"
            "    go(item, nextitem=item, log=True)\n    go(item, nextitem=nextitem, log=True)\n    return True",
            ("suites",), 0,
        ),
    ],
    ids=["--keep-duplicates", "--dist each", "reruns"],
)  # fmt: skip
def test_a_case_that_runs_twice_is_one_row(recorded, pytester, options, more, args, workers):
    recorded("--qb-update")
    result = recorded(*options, more=more, args=args, workers=workers, red=["running_max"])
    rows = [line for line in result.outlines if line.startswith(f"{PERCENTILE} ")]
    assert len(rows) == 2  # of the suites alpha and beta
    assert sum(line.startswith(f"{RUNNING_MAX} ") for line in result.outlines) == 1
    recorded("--qb-new-only", "--qb-report", "x.json", *options, more=more, args=args, workers=workers)
    assert len(json.loads((pytester.path / "x.json").read_text())["verdicts"]) == 3


def test_what_was_finished_before_a_worker_died_is_shown_reported_and_stored(run, pytester):
    """The last test of the one worker kills it."""
    dying = ALPHA + "\n@pytest.mark.cases('mse')\ndef test_dying(case, judge): import os; os._exit(3)\n"
    (pytester.path / "suites" / "test_beta.py").write_text(dying)
    result = run("--qb-new-only", "--qb-report", "x.md", workers=1)
    assert result.ret == 1
    for case_id in (RUNNING_MAX, PERCENTILE):
        assert sum(line.startswith(f"{case_id} ") and "NEW (written)" in line for line in result.outlines) == 2
        assert case_id in (pytester.path / "x.md").read_text()
    assert stored(pytester) == stored(pytester, "beta") == {RUNNING_MAX, PERCENTILE}
    assert re.search(r"the worker gw\d+ crashed: what it was doing is lost", text(result))


FLOOR = """
def pytest_sessionstart(session):
    def stopped(self, model):
        import os, signal
        os.kill(os.getpid(), signal.{signal})
        return {{}}
    Session._measured_elsewhere = stopped  # put back with what the conftest exchanges
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interruption_after_the_last_test_loses_no_table(run, pytester, own_signals, name):
    """The noise floor of what is to be stored takes minutes after "100 %"."""
    result = run("--qb-new-only", more=FLOOR.format(signal=name))
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "Traceback" not in text(result)
    assert sum(line.startswith(f"{RUNNING_MAX} ") for line in result.outlines) == 2
    assert "interrupted: 2 cases" in text(result)
    assert "(written)" not in text(result)
    assert stored(pytester) == set()


LATE = """
import os, pytest, signal

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary():
    os.kill(os.getpid(), signal.{signal})  # as hypothesis has it, which imports what it needs there
    return (yield)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_while_the_table_is_printed_costs_nothing(whole, own_signals, monkeypatch, name):
    ended_by = []
    monkeypatch.setattr(signal, "raise_signal", ended_by.append)  # this process is to go on
    result = whole("--qb-report", "x.md", more=LATE.format(signal=name))
    assert result.ret == 0
    assert ended_by == [signal.Signals[name]] * (name != "SIGINT")
    assert "Traceback" not in text(result)
    assert sum(line.startswith(f"{RUNNING_MAX} ") for line in result.outlines) == 2
    assert "report: x.md" in result.outlines
    assert "4 passed" in result.outlines[-1]


# A line of a worker's test is in the controller.
TELLS = """
def pytest_runtest_logreport(report):
    import pathlib
    if report.when == "call":
        pathlib.Path("told").touch()
"""
STOPS = """
def pytest_sessionstart(session):
    import os, pickle, signal
    if hasattr(session.config, "workerinput"):
        return
    loads = pickle.loads
    def stopped(sent):
        pickle.loads = loads
        os.kill(os.getpid(), signal.{name})
        return loads(sent)
    pickle.loads = stopped
    session.config.add_cleanup(lambda: setattr(pickle, "loads", loads))
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_interruption_between_two_tests_shows_what_was_finished(run, pytester, own_signals, name, workers):
    """As a terminal or a batch system does it: the signal goes to the process that was started."""
    once = "import os, pathlib, signal, time; pathlib.Path('sent').exists() or (pathlib.Path('sent').touch(), "
    told = f"[time.sleep(0.02) for _ in range(1000) if {workers} and not pathlib.Path('told').exists()]"
    stopping = f"{once}{told}, os.kill(os.getppid() if {workers} else os.getpid(), signal.{name}), time.sleep(5))"
    (pytester.path / "suites" / "test_beta.py").write_text(BETA.replace("    judge", f"    {stopping}\n    judge"))
    result = run("--qb-new-only", more=TELLS, workers=workers)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "Traceback" not in text(result)
    assert sum(line.startswith(f"{RUNNING_MAX} ") for line in result.outlines) == 1
    assert "the run ended early: nothing was stored" in text(result)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interruption_while_a_test_is_told_breaks_no_test_in_two(run, own_signals, name):
    """The signal comes while a row is taken over from a worker."""
    result = run("--qb-new-only", more=STOPS.format(name=name), workers=1)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert sum(line.startswith("tiny-model/") for line in result.outlines) == 1


FULL = """
def pytest_sessionstart(session):
    import errno, os
    rename = os.replace
    def full(old, new):
        if {name!r} in str(new):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(old, new)
    os.replace = full
    session.config.add_cleanup(lambda: setattr(os, "replace", rename))
"""


def test_a_report_that_cannot_be_written_costs_that_report_alone(recorded, pytester):
    recorded("--qb-update")
    result = recorded("--qb-report", "x.md", "--qb-report", "y.json", more=FULL.format(name="x.md"))
    assert result.ret == 1
    assert "no report: cannot write x.md: No space left on device; the disk is full" in text(result)
    assert "report: y.json" in result.outlines
    assert any(line.startswith(f"{PERCENTILE} ") for line in result.outlines)
    assert not list(pytester.path.glob(".quambench-*"))


def test_a_baseline_that_cannot_be_written_costs_that_baseline_alone(run, pytester):
    result = run("--qb-new-only", more=FULL.format(name="/alpha/"))
    assert result.ret == 1
    assert "ERROR alpha/tiny-model: not stored: cannot write" in text(result)
    assert text(result).count("NEW (written)") == 2  # beta has the same two cases, and they are stored
    assert stored(pytester) == set()
    assert stored(pytester, "beta") == {RUNNING_MAX, PERCENTILE}


def test_a_locale_of_ascii_letters_loses_nothing(recorded, pytester, monkeypatch):
    recorded("--qb-update")
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}.items():
        monkeypatch.setenv(name, value)
    result = recorded("--qb-report", "x.md", "--qb-report", "x.json", workers=1)
    assert result.ret == 0
    assert "±" in (pytester.path / "x.md").read_text(encoding="utf-8")
    assert "+-" in text(result)
    assert any(line.startswith(f"{PERCENTILE} ") for line in result.outlines)
