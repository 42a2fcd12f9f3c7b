"""The plug-in's options: what they mean for a run. All that can be wrong with them is told before anything runs."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from quambench.case import Case, check_fit, in_order
from quambench.core.errors import BadParameter, check_writable
from quambench.core.provenance import judged
from quambench.grids.precision import Precision
from quambench.int8.weights import LARGEST
from quambench.interchange.outside import find_calibration
from quambench.models.checkpoint import checked_device
from quambench.observers import ObserverSpec
from quambench.plugin.marks import Asked
from quambench.policy.base import PER_TENSOR, check_grouping
from quambench.report import check_report
from quambench.session.session import Session


def session_of(option: Namespace, root: Path) -> Session:
    """A session that the options describe, in a project. raises BadParameter"""
    checked_device(option.qb_device)
    _check_storing(option)
    judged(root)  # now, before anything is stored beside the code
    return Session(
        device=option.qb_device,
        root=root,
        baselines=option.qb_baselines or root / "baselines",
        corpus_path=option.qb_corpus,
        update=option.qb_update,
        new_only=option.qb_new_only,
        accept=(option.qb_accept or "").strip(),
        allow_drift=option.qb_allow_drift,
    )


def asked_by(option: Namespace, session: Session) -> Asked:
    """What the options say about cases; models are loaded, and everything named is found.

    raises a QuambenchError in one line
    """
    asked = Asked(
        models=tuple(session.load(name).name for name in option.qb_model),
        observers=tuple(option.qb_observer),
        calibrations=tuple(option.qb_calibration),
        groupings=tuple(option.qb_grouping),
        precision=option.qb_precision or "",
        tasks=in_order(name for given in option.qb_task for name in given.split(",") if name),
        task_limit=option.qb_limit or 0,
        full=option.qb_full,
    )
    _check_scales(asked)
    _check_tasks(asked, option, session)
    _check_prose(asked, option, session)
    for path in option.qb_report:
        check_report(path, "--qb-report")
    if option.qb_update or option.qb_new_only:
        check_writable(session.baselines)
    if option.qb_corpus:
        _ = session.corpus
    return asked


def _check_storing(option: Namespace) -> None:
    if option.qb_update and option.qb_new_only:
        raise BadParameter("--qb-update replaces what is stored and --qb-new-only leaves it alone: give one of them")
    if option.qb_accept is None:
        return
    if not option.qb_accept.strip():
        raise BadParameter('--qb-accept must say why, for those who read the diff: --qb-accept "new clipping, agreed"')
    if not (option.qb_update or option.qb_new_only):
        raise BadParameter("--qb-accept says why a worse result is stored, and nothing is: give --qb-update with it")


def _check_scales(asked: Asked) -> None:
    for spec in asked.observers:
        ObserverSpec.parse(spec)
    if asked.observers and asked.calibrations:
        raise BadParameter("--qb-observer and --qb-calibration both say where scales come from: give one of them")
    for name in asked.calibrations:
        find_calibration(name)
    for grouping in asked.groupings:
        check_grouping(grouping)
    if asked.precision:
        Precision.parse(asked.precision)
    if not asked.calibrations:
        return
    precision = Precision.parse(asked.precision) if asked.precision else Precision()
    for grouping in asked.groupings or (PER_TENSOR,):
        case = Case(
            model="", observer=LARGEST, calibration=asked.calibrations[0], precision=precision, grouping=grouping
        )
        check_fit(case)


def _check_tasks(asked: Asked, option: Namespace, session: Session) -> None:
    if option.qb_task and not asked.tasks:
        raise BadParameter("--qb-task must name a task, e.g. --qb-task prose_lambada")
    if option.qb_limit is not None and (option.qb_limit < 1 or not asked.tasks):
        raise BadParameter("--qb-limit is a number of documents of each --qb-task, 1 or more")
    if asked.tasks:
        session.tasks.check(asked.tasks)


def _check_prose(asked: Asked, option: Namespace, session: Session) -> None:
    """Texts and tasks are for models of prose: of those asked for, one at least."""
    if not asked.models or not all(session.checkpoints[name].recall for name in asked.models):
        return
    for name, value in (("--qb-corpus", option.qb_corpus), ("--qb-task", option.qb_task)):
        if value:
            raise BadParameter(f"{', '.join(asked.models)} reads no texts, its sequences are made: leave {name} out")
