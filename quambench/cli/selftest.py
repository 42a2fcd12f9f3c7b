"""quambench selftest: plant faults, and see whether the gate sees them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from tabulate import tabulate

from quambench.cli.options import add_corpus, check_corpus, check_counts, progress_bars, refuse_beside
from quambench.core.errors import UnknownName
from quambench.selftest.error_rates import Power, Rate, error_rates, powers
from quambench.selftest.faults import FAULTS
from quambench.selftest.selftest import MODELS, Report, selftest


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", action="append", metavar="NAME|DIR", help=f"repeatable (default: {', '.join(MODELS)})"
    )
    parser.add_argument("--fault", action="append", metavar="NAME", help="this one alone; repeatable")
    parser.add_argument("--list", action="store_true", help="only name the faults")
    parser.add_argument("--no-clean", action="store_true", help="leave out the clean runs under other numerics")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="this many at once, one thread each (default: as many as CPUs)"
    )
    parser.add_argument(
        "--error-rates",
        type=int,
        metavar="ROWS",
        nargs="?",
        const=2000,
        help="instead: how often the gate is wrong, by simulation of so many rows",
    )
    add_corpus(parser)
    parser.add_argument("--json", action="store_true", help="for machines")


def run(options: argparse.Namespace) -> int:
    names = [f.name for f in FAULTS]
    for name in options.fault or ():
        if name not in names:
            raise UnknownName("fault", name, names, "quambench/selftest/faults/", "quambench selftest --list")
    check_counts(options, "--error-rates")
    work = ("--model", "--fault", "--no-clean", "--jobs", "--corpus")
    if options.list:
        refuse_beside(options, "--list", (*work, "--error-rates"), "names the faults and runs nothing")
        print(_listed(options.json))
        return 0
    check_corpus(options.corpus, options.model or MODELS)
    if options.error_rates:
        refuse_beside(options, "--error-rates", work, "simulates rows, and plants and measures nothing")
        with progress_bars() as progress:
            rates = error_rates(options.error_rates, progress)
            found = powers(options.error_rates // 10 or 1, progress)
        document = [*map(asdict, rates), *map(asdict, found)]
        print(json.dumps(document, indent=1) if options.json else _rates(rates, found))
        return 0 if all(rate.holds for rate in rates) else 1
    with progress_bars() as progress:
        report = selftest(
            options.model or MODELS,
            options.fault or (),
            options.corpus,
            not options.no_clean,
            progress,
            options.jobs or 0,
        )
    print(_json(report) if options.json else _text(report))
    return 0 if report.passes else 1


def _listed(for_machines: bool) -> str:
    if for_machines:
        rows = [{"fault": f.name, "unit": f.unit, "place": f.place, "changes_nothing": f.no_op} for f in FAULTS]
        return json.dumps(rows, indent=1, ensure_ascii=False)
    cells = [[f.name, f.unit, f.place, f.no_op] for f in FAULTS]
    table: str = tabulate(cells, ["fault", "unit", "place", "changes nothing"])
    return table


def _rates(rates: Sequence[Rate], found: Sequence[Power]) -> str:
    alarms = [
        [f"{r.level:g}", r.cases, r.runs, r.alarms, f"{r.measured:.2g}", f"{r.second_looks / (r.runs * r.cases):.1%}"]
        for r in rates
    ]
    seen = [[f"{p.loss:.0%}", p.rows, f"{p.one_look / p.rows:.0%}", f"{p.two_looks / p.rows:.0%}"] for p in found]
    return "\n\n".join(
        [
            tabulate(alarms, ["level", "cases a run", "clean runs", "alarms", "measured", "rows looked at twice"]),
            tabulate(seen, ["accuracy lost", "rows", "red by one look", "red by two"]),
        ]
    )


def _json(report: Report) -> str:
    right, asked = report.named
    document = {
        "passes": report.passes,
        "caught": len([o for o in report.outcomes if o.caught and not o.no_op]),
        "missed": [f"{o.fault} ({o.model})" for o in report.missed],
        "named_rightly": right,
        "to_be_named": asked,
        "clean_runs": len(report.clean),
        "false_alarms": len(report.alarms),
        "seconds": round(report.seconds, 1),
        "outcomes": [asdict(o) for o in report.outcomes],
        "clean": [asdict(c) for c in report.clean],
    }
    return json.dumps(document, indent=1)


def _text(report: Report) -> str:
    rows = []
    for o in report.outcomes:
        seen = ("no alarm" if not o.caught else "FALSE ALARM") if o.no_op else ("caught" if o.caught else "MISSED")
        named = "-" if o.named is None else ("right" if o.named else f"WRONG (wanted {o.wanted_unit} {o.wanted_place})")
        rows.append([o.fault, o.model, seen, o.verdict, o.unit or "-", o.place or "-", named])
    table = tabulate(rows, ["fault", "model", "", "verdict", "unit named", "first site named", "named"])
    settings: dict[str, list[int]] = {}
    for c in report.clean:
        counts = settings.setdefault(c.setting + (" (portable)" if c.portable else ""), [0, 0])
        counts[0] += 1
        counts[1] += c.alarm
    clean = tabulate([[s, *n] for s, n in settings.items()], ["clean code under", "runs", "false alarms"])
    right, asked = report.named
    planted = [o for o in report.outcomes if not o.no_op]
    summary = [
        f"caught {sum(o.caught for o in planted)} of {len(planted)} planted faults, named {right} of {asked} rightly,"
        f" {len(report.alarms)} false alarms over {len(report.clean)} clean runs; {report.seconds:.0f} s"
    ]
    alarms = [
        f"FALSE ALARM {c.setting}, batch {c.batch}, {c.model}: {c.verdict}: {c.reason}" for c in report.clean if c.alarm
    ]
    missed = [f"MISSED {o.fault} in {o.model}: {o.verdict} {o.reason}" for o in report.missed]
    clean_part = [clean, ""] if settings else []
    return "\n".join([table, "", *clean_part, *missed, *alarms, *summary])
