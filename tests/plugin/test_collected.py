"""What is known of a run's tests, and what follows for stored cases: each rule on facts that are made up.

The same with pytest's own facts: tests/plugin/test_absent.py.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from quambench.gate.verdicts import Status, Verdict
from quambench.models.checkpoint import bundled_names
from quambench.plugin import collected
from quambench.plugin.absent import Run
from quambench.plugin.collected import Collected, Item, Row, moved, standing, suite_of
from quambench.plugin.marks import Asked

A, B = Path("/suites/test_a.py"), Path("/suites/test_b.py")
GOOD, BAD = Row("m/mse/1x1", "SAME", True), Row("m/aciq/1x1", "REGRESSED", False)


def whole(**changes) -> Collected:
    """Two files of two tests, all of which ran and passed, one verdict each."""
    items = {
        "a::1": Item(A, "m/mse/1x1", "m", asks=True), "a::2": Item(A, "n/mse/1x1", "n", asks=True),
        "b::1": Item(B, "m/aciq/1x1", "m", asks=True), "b::2": Item(B),
    }  # fmt: skip
    facts = {
        "files": {A, B}, "items": items, "chosen": set(items), "ended": dict.fromkeys(items, "passed"),
        "called": set(items), "rows": {n: [Row(i.case_id, "SAME", True)] for n, i in items.items() if i.asks},
    }  # fmt: skip
    return Collected(**facts | changes)


# --- how a test ends ------------------------------------------------------------------------------------

ENDS = {
    "passes": ([("passed", False, None), ("passed", True, None), ("passed", False, None)], "passed", True, None),
    "fails": ([("passed", False, None), ("failed", True, None), ("passed", False, None)], "failed", True, None),
    "fails in its set-up": ([("failed", False, None), ("passed", False, None)], "failed", False, None),
    "fails in its tear-down": ([("passed", False, None), ("passed", True, None), ("failed", False, None)],
                               "failed", True, None),
    "is skipped": ([("skipped", False, None), ("passed", False, None)], "skipped", False, None),
    "skips itself": ([("passed", False, None), ("skipped", True, None)], "skipped", True, None),
    "fails as expected": ([("passed", False, None), ("skipped", True, "known")], "xfailed", True, "known"),
    "is not run, since it would fail": ([("skipped", False, "")], "xfailed", False, ""),
    "passes and was to fail": ([("passed", False, None), ("passed", True, "known")], "passed", True, "known"),
    "passes and was strictly to fail": ([("passed", False, None), ("failed", True, None)], "failed", True, None),
    "has only been set up": ([("passed", False, None)], None, False, None),
}  # fmt: skip


@pytest.mark.parametrize("how", ENDS)
def test_a_test_has_ended_as_its_phases_say(how):
    phases, outcome, called, reason = ENDS[how]
    found = Collected()
    for phase in phases:
        found.end("a::1", *phase)
    assert found.ended == ({} if outcome is None else {"a::1": outcome})
    assert found.called == ({"a::1"} if called else set())
    assert found.expected == ({} if reason is None else {"a::1": reason})


def test_a_run_that_has_not_begun_knows_nothing():
    nothing = Collected()
    assert not any(getattr(nothing, f.name) for f in fields(Collected))
    assert Item(A) == Item(A, case_id="", model="", asks=False)


def test_what_a_worker_found_is_taken_over_and_how_its_tests_ended_is_told_otherwise():
    ours = Collected(files={A}, broken={A: "was skipped"}, items={"a::1": Item(A)}, chosen={"a::1"},
                     rows={"a::1": [GOOD]})  # fmt: skip
    ours.merge(Collected(files={B}, broken={B: "could not"}, items={"b::1": Item(B)}, chosen={"b::1"},
                         rows={"b::1": [BAD]}, early=True, ended={"b::1": "passed"}, lost=["gw9"]))  # fmt: skip
    assert ours == Collected(
        files={A, B}, broken={A: "was skipped", B: "could not"}, items={"a::1": Item(A), "b::1": Item(B)},
        chosen={"a::1", "b::1"}, rows={"a::1": [GOOD], "b::1": [BAD]}, early=True,
    )  # fmt: skip
    ours.merge(Collected())
    assert ours.early


# --- what is unknown ------------------------------------------------------------------------------------

UNKNOWN = {
    "nothing": ({}, {A, B}, ""),
    "a worker": ({"lost": ["gw0", "gw1"]}, {A}, "gw0 crashed"),
    "a file": ({"files": {B}}, {A, B}, "test_a.py was not collected"),
    "another's file": ({"files": {B}}, {B}, ""),
    "a broken file": ({"broken": {A: "was skipped"}}, {A}, "test_a.py was skipped"),
    "another's broken file": ({"broken": {A: "was skipped"}}, {B}, ""),
    "the first of two": ({"broken": {A: "was skipped", B: "could not be collected"}}, {B, A}, "test_a.py was skipped"),
    "a skip": ({"ended": {"a::1": "skipped"}}, {A}, "a::1 was skipped"),
    "another's skip": ({"ended": {"a::1": "skipped"}}, {B}, ""),
    "a test that was not called": ({"called": {"a::1", "b::1"}}, {A}, "a::2 did not run"),
    "another's that was not called": ({"called": {"a::1", "a::2"}}, {A}, ""),
    "a failure": ({"ended": {"a::1": "failed"}}, {A}, ""),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_of_what_was_not_collected_or_did_not_run_the_reason_is_told(what):
    changes, files, why = UNKNOWN[what]
    assert whole(**changes).unknown(files) == why


def test_cases_and_verdicts_are_those_of_the_files_and_the_model_that_are_asked_for():
    found = whole()
    assert found.produced({A}) == found.judged({A}) == {"m/mse/1x1", "n/mse/1x1"}
    assert found.produced({A, B}) == {"m/mse/1x1", "n/mse/1x1", "m/aciq/1x1"}
    assert found.produced({A, B}, "m") == {"m/mse/1x1", "m/aciq/1x1"}
    assert found.produced(set()) == found.judged(set()) == set()
    assert whole(rows={}).judged({A}) == set()
    assert found.rows_of("a::1") == [GOOD] and found.rows_of("b::2") == []


def test_a_test_that_is_judged_again_has_its_last_verdict():
    found = whole(rows={})
    for row in (BAD, GOOD, replace(BAD, passes=True, status="SAME")):
        found.judge("a::1", row)
    assert found.rows == {"a::1": [GOOD, replace(BAD, passes=True, status="SAME")]}


def test_a_test_that_did_not_end_was_left_out():
    assert whole().left_out == []
    assert whole(ended={"b::2": "skipped", "a::1": "passed"}).left_out == ["a::2", "b::1"]


BAD_ROWS = {"a::1": [GOOD, BAD], "b::1": [GOOD]}
ANSWERS = {  # how a::1 ended, the reason of its xfail -> whether its verdict is excused, whether it is swallowed
    "failed": ("failed", None, False, False),
    "passed": ("passed", None, False, True),
    "skipped": ("skipped", None, False, True),
    "expected": ("xfailed", "known", True, False),
    "expected and passed": ("passed", "known", True, False),
    "unfinished": (None, None, False, False),
}


@pytest.mark.parametrize("how", ANSWERS)
def test_a_verdict_that_fails_is_its_tests_failure_or_is_told(how):
    outcome, reason, excused, swallowed = ANSWERS[how]
    found = whole(rows=BAD_ROWS, ended={} if outcome is None else {"a::1": outcome, "b::1": "passed"})
    found.expected = {} if reason is None else {"a::1": reason}
    assert list(found.excused) == ([("known", BAD)] if excused else [])
    assert list(found.swallowed) == ([("a::1", BAD)] if swallowed else [])


# --- files on disk --------------------------------------------------------------------------------------


def test_a_suite_is_named_after_its_file():
    assert [suite_of(Path(name)) for name in ("x/test_alpha.py", "alpha.py", "my_test_b.py", "test_.py")] == [
        "alpha", "alpha", "my_test_b", "",
    ]  # fmt: skip


def written(folder: Path, **texts: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def test_files_are_found_as_pytest_goes_through_links_and_not_in_hidden_folders_or_environments(tmp_path):
    root = written(tmp_path.resolve() / "suites", test_alpha="", _test_beta="")
    written(root / "more", test_alpha="", test_gamma="")
    written(root / ".hidden", test_hidden="")
    written(root / "env" / "lib", test_env="")
    (root / "env" / "pyvenv.cfg").touch()
    (root / "test_notes.txt").touch()
    elsewhere = written(tmp_path.resolve() / "elsewhere", test_linked="")
    (root / "link").symlink_to(elsewhere)
    (root / "more" / "back").symlink_to(root)  # round and round, and what comes after it is still found
    written(root / "more" / "zoo", test_last="")
    assert standing(root) == {
        "alpha": {root / "test_alpha.py", root / "more" / "test_alpha.py"},
        "_test_beta": {root / "_test_beta.py"},
        "gamma": {root / "more" / "test_gamma.py"},
        "linked": {elsewhere / "test_linked.py"},
        "last": {root / "more" / "zoo" / "test_last.py"},
    }
    assert len(list(collected._modules(root))) == 6  # each once


def test_a_suite_has_moved_where_a_file_of_its_name_speaks_of_cases_and_judges(tmp_path):
    root = tmp_path.resolve()
    written(root / "a", test_alpha="judge(1)")
    written(root / "b", test_alpha="cases = 3")
    written(root / "c", test_beta="cases, judge")
    assert moved(root, "alpha") is None
    written(root / "d", test_alpha="cases, judge")
    written(root / "e", test_alpha="cases, judge")
    assert moved(root, "alpha") == root / "d" / "test_alpha.py"
    (root / "d" / "test_alpha.py").write_bytes(b"cases \xff judge")  # not UTF-8, and read all the same
    assert moved(root, "alpha") == root / "d" / "test_alpha.py"


def test_a_file_is_a_suite_by_its_tests_and_one_without_any_by_its_words(tmp_path):
    root = written(tmp_path, test_a="", test_b="cases, judge", test_c="cases, judge")
    a, b, c = (root / f"test_{name}.py" for name in "abc")
    items = {"a::1": Item(a), "a::2": Item(a, asks=True), "b::1": Item(b)}
    found = Collected(files={a, b, c}, items=items)
    assert [found.is_suite(file) for file in (a, b, c)] == [True, False, True]  # b's test judges nothing
    found.broken[b] = "was skipped"  # not all of its tests are known
    assert found.is_suite(b)
    found.broken[b.with_name("test_gone.py")] = "could not be collected"
    assert not found.is_suite(b.with_name("test_gone.py"))


# --- the end of a run -----------------------------------------------------------------------------------

MINE = bundled_names()[0]
FIRST, SECOND = f"{MINE}/mse/1x1", f"{MINE}/aciq/1x1"


class Stored:
    """A session over two suites, a and b, that has two cases of each and notes what it is asked."""

    def __init__(self, *verdicts: Verdict, allow_drift: bool = False, models=(MINE,), finds=()) -> None:
        self.verdicts, self.allow_drift, self.notes = list(verdicts), allow_drift, []
        self.to_write: dict = {}
        self.finds, self.orphaned, self.looked, self.asked_probes = list(finds), [], [], 0
        of_each = {suite: set(models) for suite in "ab"}
        self.store = SimpleNamespace(suites=lambda: ["a", "b"], models=of_each.__getitem__)

    def stored(self, suite, full, models):
        self.looked.append((suite, full, models))
        return {FIRST, SECOND}

    def orphans(self, suite, produced, full, models):
        self.orphaned.append((suite, produced, full, models))
        self.verdicts += self.finds

    def gone_probes(self):
        self.asked_probes += 1


def verdict(case_id: str, status: Status = Status.SAME) -> Verdict:
    return Verdict(case_id, status)


@pytest.fixture
def project(tmp_path) -> Path:
    written(tmp_path.resolve() / "suites", test_a="", test_b="")
    return tmp_path.resolve()


def run_of(project: Path, session=None, **changes) -> Run:
    """All of suites/ was asked for; a and b have two tests each that ran, for the two stored cases."""
    at = {suite: project / "suites" / f"test_{suite}.py" for suite in "ab"}
    items = {f"{s}::{i}": Item(at[s], c, MINE, asks=True) for s in "ab" for i, c in enumerate((FIRST, SECOND))}
    facts = {
        "files": set(at.values()), "items": items, "chosen": set(items), "ended": dict.fromkeys(items, "passed"),
        "called": set(items), "rows": {n: [Row(item.case_id, "SAME", True)] for n, item in items.items()},
    }  # fmt: skip
    ours = {name: changes.pop(name) for name in list(changes) if name in {f.name for f in fields(Collected)}}
    options = {"given": (project / "suites",), "narrowed": False, "asked": Asked()} | changes
    return Run(project, collected=Collected(**facts | ours), session=session or Stored(verdict(FIRST)), **options)


@pytest.mark.parametrize(
    ("given", "whole_folder"),
    [(("suites",), True), ((".",), True), (("..",), True), (("suites/test_a.py",), False), (("elsewhere", "."), True),
     ((), False)],
)  # fmt: skip
def test_the_whole_folder_was_asked_for_by_its_name_or_one_above_it(project, given, whole_folder):
    assert run_of(project, given=tuple((project / g).resolve() for g in given)).whole_folder is whole_folder


OTHERS = {"a narrowed run": {"narrowed": True}, "another model": {"asked": Asked(models=("x",))},
          "other cases": {"asked": Asked(groupings=("channel",))}}  # fmt: skip


def test_a_run_of_all_asks_of_every_suite_what_is_gone(project):
    session = Stored(verdict(FIRST), models=(MINE, "mine", "another"))
    run = run_of(project, session, asked=Asked(full=True))
    assert run.own_cases
    assert run.settle() is True
    assert session.orphaned == [(suite, {FIRST, SECOND}, True, bundled_names()) for suite in "ab"]
    assert session.notes == ["what is stored for another, mine was not judged: --qb-model asks for it"]
    assert session.asked_probes == 0


@pytest.mark.parametrize("which", OTHERS)
def test_a_run_of_some_cases_asks_nothing_of_the_rest(project, which):
    session = Stored(verdict(FIRST), models=(MINE, "mine"), finds=[verdict("gone", Status.ORPHAN)])
    run = run_of(project, session, ended={}, called=set(), **OTHERS[which])
    assert not run.own_cases
    assert run.settle() is True
    assert run.unjudged == []
    assert (session.orphaned, session.notes, session.looked) == ([], [], [])


def test_where_nothing_was_judged_nothing_is_gone(project):
    session = Stored()
    assert run_of(project, session).settle() is True
    assert session.orphaned == []


@pytest.mark.parametrize(
    ("status", "allow_drift", "passes"),
    [(Status.ORPHAN, False, False), (Status.DRIFTED, True, True), (Status.DRIFTED, False, False)],
)
def test_what_is_found_in_the_end_passes_or_not_and_what_was_found_before_has_had_its_say(
    project, status, allow_drift, passes
):
    before = verdict(SECOND, Status.REGRESSED)  # its own test is red already
    session = Stored(before, allow_drift=allow_drift, finds=[verdict("gone", status)])
    assert run_of(project, session).settle() is passes


def test_gone_probes_are_asked_for_after_a_run_of_all_that_was_collected(project):
    probe = verdict("probe/grid/scale")
    for changes, asked in (({}, 1), ({"ended": {}}, 0), ({"lost": ["gw0"]}, 0)):
        session = Stored(probe)
        run_of(project, session, **changes).settle()
        assert session.asked_probes == asked


def test_a_suite_that_is_unknown_is_told_with_the_number_of_its_cases(project):
    session = Stored(verdict(FIRST))
    skipped = {"a::0": "passed", "a::1": "skipped", "b::0": "passed", "b::1": "passed"}
    rows = {"a::0": [Row(FIRST, "SAME", True)]}
    run = run_of(project, session, ended=skipped, rows=rows, asked=Asked(full=True))
    assert run.settle() is True
    assert session.notes == ["a: 1 stored case(s) were not judged: a::1 was skipped"]
    assert [suite for suite, *_ in session.orphaned] == ["b"]
    assert session.looked == [(suite, True, bundled_names()) for suite in "ab"]


def test_a_suite_all_of_whose_cases_were_judged_is_none_to_tell_of(project):
    session = Stored(verdict(FIRST))
    run = run_of(project, session, broken={project / "suites" / "test_a.py": "has no test in its class TestA"})
    run.settle()
    assert session.notes == []


def test_suites_beside_those_that_were_asked_for_are_nobodys_concern(project):
    run = run_of(project, given=(project / "suites" / "test_a.py",), files={project / "suites" / "test_a.py"})
    assert run.suites == [("a", {project / "suites" / "test_a.py"}, "")]


def test_a_suite_without_a_file_is_gone_or_moved_or_unknown(project):
    (project / "suites" / "test_b.py").unlink()
    at = project / "suites" / "test_a.py"
    only = {"files": {at}, "items": {"a::0": Item(at, FIRST, MINE)}}
    a = ("a", {at}, "")
    assert run_of(project, **only).suites == [a, ("b", set(), "")]
    assert run_of(project, **only, given=(at,)).suites == [a]
    assert run_of(project, **only | {"ended": {}}).suites[1] == ("b", set(), "a::0 did not run")
    assert run_of(project, **only, lost=["gw0"]).suites == [("a", {at}, "gw0 crashed"), ("b", set(), "gw0 crashed")]
    written(project / "more", test_b="cases, judge")
    why = "it may be more/test_b.py, which was not collected"
    assert run_of(project, **only).suites == [a, ("b", set(), why)]


def test_a_file_that_was_collected_elsewhere_is_its_suites_too(project):
    elsewhere = project / "more" / "test_b.py"
    at = project / "suites" / "test_b.py"
    run = run_of(project)
    run.collected.files.add(elsewhere)
    assert run.suites[1] == ("b", {at}, "")  # it has no test that judges
    run.collected.items["more::0"] = Item(elsewhere, FIRST, MINE, asks=True)
    run.collected.called.add("more::0")
    assert replace(run).suites[1] == ("b", {elsewhere, at}, "")


def test_a_file_on_disk_that_was_not_collected_is_unknown_where_the_whole_folder_was_asked_for(project):
    at = {suite: project / "suites" / f"test_{suite}.py" for suite in "ab"}
    assert run_of(project, files={at["a"]}).suites[1] == ("b", {at["b"]}, "test_b.py was not collected")


def test_verdicts_that_no_test_answers_for_are_told(project):
    session = Stored(verdict(FIRST))
    bad = Row(SECOND, "REGRESSED", False)
    changes = {
        "rows": {"a::0": [bad], "a::1": [bad], "b::0": [bad]}, "expected": {"a::0": "known", "a::1": ""},
    }  # fmt: skip
    assert run_of(project, session, **changes | {"rows": {"a::0": [bad], "a::1": [bad]}}).settle() is True
    excused = [
        f"REGRESSED {SECOND} passes: its test is marked xfail (known)",
        f"REGRESSED {SECOND} passes: its test is marked xfail (without a reason)",
    ]
    assert session.notes == excused
    session = Stored(verdict(FIRST))
    assert run_of(project, session, **changes).settle() is False
    assert session.notes == [*excused, f"REGRESSED {SECOND} fails the run: b::0 caught what judge raised"]


def test_a_worker_that_crashed_is_told_and_fails_the_run(project):
    session = Stored(verdict(FIRST))
    assert run_of(project, session, lost=["the worker gw1"], narrowed=True).settle() is False
    assert session.notes == ["the worker gw1 crashed: what it was doing is lost, and what it had finished is not"]


def test_nothing_was_judged_where_verdicts_were_asked_for_and_none_was_made(project):
    assert not run_of(project).judged_nothing  # one was made
    assert run_of(project, Stored()).judged_nothing
    assert not run_of(project, Stored(), chosen=set()).judged_nothing  # none was asked for
    quiet = {f"a::{i}": Item(project / "suites" / "test_a.py") for i in range(2)}
    run = run_of(project, Stored(), items=quiet, chosen={"a::0"}, called=set(), rows={})
    assert run.judged_nothing  # a whole suite's stored cases were not judged
    assert not replace(run, narrowed=True).judged_nothing


@pytest.mark.parametrize(
    "changes",
    [{"narrowed": True}, {"asked": Asked(observers=("mse",))}, {"called": {"a::0"}}, {"lost": ["gw0"]},
     {"ran": [FIRST]}, {"ran": [FIRST, SECOND, f"{MINE}/entropy/1x1"]}],
)  # fmt: skip
def test_a_run_of_less_than_a_suites_own_cases_replaces_nothing(project, changes):
    changes = dict(changes)
    ran = changes.pop("ran", [FIRST, SECOND])
    session = Stored(verdict(FIRST))
    session.to_write = {("a", MINE): [(SimpleNamespace(id=case_id), None) for case_id in ran]}
    assert run_of(project, session, **changes).replaceable == set()


def test_a_run_of_all_of_a_suites_own_cases_of_a_model_replaces_its_file(project):
    session = Stored(verdict(FIRST))
    at = project / "suites" / "test_a.py"
    items = {"a::0": Item(at, FIRST, MINE, asks=True), "a::1": Item(at, "x/mse/1x1", "x", asks=True)}
    facts = {"items": items, "called": set(items), "ended": dict.fromkeys(items, "passed")}
    session.to_write = {("a", MINE): [(SimpleNamespace(id=FIRST), None)]}
    assert run_of(project, session, **facts).replaceable == {("a", MINE)}
    assert run_of(project, session, **facts, asked=Asked(models=(MINE, "x"))).replaceable == {("a", MINE)}
