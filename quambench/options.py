"""The plug-in's options: what they mean for a run. All that can be wrong with them is told before anything runs."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from quambench.case import in_order
from quambench.errors import BadParameter, check_writable
from quambench.interchange.outside import find_calibration
from quambench.marks import Asked
from quambench.models.checkpoint import checked_device
from quambench.observers import ObserverSpec
from quambench.policy.base import check_grouping
from quambench.provenance import judged
from quambench.quant.precision import Precision
from quambench.report import check_report
from quambench.session import Session


def session_of(option: Namespace, root: Path) -> Session:
    """A session that the options describe, in a project. raises BadParameter"""
    checked_device(option.qb_device)
    judged(root)  # now, before anything is stored beside the code
    return Session(
        device=option.qb_device,
        root=root,
        baselines=option.qb_baselines or root / "baselines",
        corpus_path=option.qb_corpus,
        update=option.qb_update,
        new_only=option.qb_new_only,
        accept=option.qb_accept,
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
        task_limit=option.qb_limit,
        full=option.qb_full,
    )
    _check_scales(asked)
    _check_tasks(asked, option.qb_task, session)
    for path in option.qb_report:
        check_report(path, "--qb-report")
    if option.qb_update or option.qb_new_only:
        check_writable(session.baselines)
    if option.qb_corpus:
        _ = session.corpus
    return asked


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


def _check_tasks(asked: Asked, given: Sequence[str], session: Session) -> None:
    if given and not asked.tasks:
        raise BadParameter("--qb-task must name a task, e.g. --qb-task prose_lambada")
    if asked.task_limit < 0 or (asked.task_limit and not asked.tasks):
        raise BadParameter("--qb-limit is a number of documents of each --qb-task, 1 or more")
    if asked.tasks:
        session.tasks.check(asked.tasks)
