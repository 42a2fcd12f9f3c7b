"""Stored results: <root>/<suite>/<machine class>/<model>.json, with the evidence beside it.

The JSON holds what a reviewer reads: one case a block, sorted. Its evidence (arrays) is a
safetensors file whose name carries its own hash, so that replacing the JSON is the one atomic step:
killed at any moment, a write leaves the old pair or the new one. One process writes in a folder at a
time, and reads again what is there before it does; readers do not wait.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from quambench.core.errors import BadArtefact, NewerSchema, NotWritten
from quambench.core.files import locked, remove, write
from quambench.core.pointers import check_fetched
from quambench.core.reading import Unreadable, is_file, parse_json, read_bytes, read_pair, shown
from quambench.gate.forms import check_arrays, check_entry, check_scales
from quambench.gate.migrations import SCHEMA, migrated
from quambench.gate.noise import SITE_ROWS, Noise
from quambench.gate.record import Artefacts, Record
from quambench.metrics import Measurement, Metric, metrics_of

_SEPARATOR = "//"  # between case id and array name
_REST = "rest."  # before the names of a second look's arrays
_FLOORS = ("means", "units", "arrays")  # of Noise, by name


@dataclass(frozen=True, slots=True)
class Stored:
    """The cases of a baseline file, and whether the file belongs to this machine class."""

    path: Path
    cases: Mapping[str, Record]
    portable: bool


class BaselineStore:
    """The baselines under one folder."""

    def __init__(self, root: Path, machine: str) -> None:
        self.root, self.machine = root, machine
        self._read: dict[Path, Stored] = {}

    def path(self, suite: str, model: str, machine: str | None = None) -> Path:
        return self.root / suite / (machine or self.machine) / f"{model}.json"

    def find(self, suite: str, model: str, case_id: str | None = None) -> Stored | None:
        """Return this class's file, else the nearest class's (marked portable), else None.

        case_id  only files that have this case: a class may have stored some of a suite's cases alone
        raises BadArtefact naming the file when it cannot be trusted
        """
        for path in self.files(suite, model):
            stored = self.read(path)
            if case_id is None or case_id in stored.cases:
                return stored
        return None

    def suites(self) -> list[str]:
        """Return the suites of which something is stored."""
        return sorted({path.parents[1].name for path in self.root.glob("*/*/*.json")})

    def models(self, suite: str) -> list[str]:
        """Return the models of which something is stored in a suite."""
        return sorted({path.stem for path in (self.root / suite).glob("*/*.json")})

    def files(self, suite: str, model: str) -> list[Path]:
        """Return the files of every class that has one: this class's first, then the nearest."""
        own = self.path(suite, model)
        every = (
            folder / f"{model}.json" for folder in _folders(self.root / suite)
        )  # no pattern: a name may have stars
        others = sorted((path for path in every if _exists(path)), key=self._distance)
        return ([own] if _exists(own) else []) + [path for path in others if path != own]

    def named(self, suite: str, model: str) -> set[str]:
        """Return the ids of the cases that this class's file names, as far as its text shows, readable or not."""
        path = self.path(suite, model)
        if not is_file(path):
            return set()
        text = read_bytes(path).decode(errors="replace")
        return {_unescaped(name) for name in re.findall(r'^  (".+"): \{\r?$', text, re.MULTILINE)}

    def read(self, path: Path) -> Stored:
        """Read one baseline file. raises BadArtefact"""
        if path not in self._read:
            own = path.parent.name == self.machine
            self._read[path] = Stored(path, read_baseline(path), portable=not own)
        return self._read[path]

    def remove(self, suite: str, model: str, gone: Iterable[str]) -> list[Path]:
        """Take cases out of every class's file, and remove a file that is left without any. Returns the files that
        changed.
        """
        written, out = [], set(gone)
        for path in self.files(suite, model):
            if not out & self.read(path).cases.keys():
                continue
            self._read.pop(path)
            with locked(path.parent):
                kept = {i: record for i, record in _there(path).items() if i not in out}
                if kept:
                    _write(path, kept)
                else:
                    _remove(path)
            written.append(path)
        return written

    def _distance(self, path: Path) -> tuple[int, str]:
        """Return a key that sorts classes by distance: fewer shared words of the name are farther; ties by name."""
        return -len(set(path.parent.name.split("-")) & set(self.machine.split("-"))), path.parent.name

    def write(
        self, suite: str, model: str, records: Iterable[Record], afresh: bool = False, new_only: bool = False
    ) -> tuple[Path, list[str]]:
        """Put `records` into this class's file, beside what it has by now; `afresh`: in place of it.

        Returns the file, and with `new_only` the ids that it had already and kept.
        raises BadArtefact, and leaves the file alone, when it cannot be read and is not to be replaced; NotWritten
        """
        path = self.path(suite, model)
        self._read.pop(path, None)
        with locked(path.parent):
            stored = {} if afresh else _there(path)
            found = {record.case_id: record for record in records}
            kept = sorted(found.keys() & stored.keys()) if new_only else []
            merged = stored | found | {case_id: stored[case_id] for case_id in kept}
            if len(kept) < len(found):
                _write(path, merged)
        return path, kept


def write_baseline(path: Path, cases: Mapping[str, Record]) -> None:
    """Replace `path` and its evidence in one atomic step. raises NotWritten"""
    with locked(path.parent):
        _write(path, cases)


def remove_baseline(path: Path) -> None:
    """Remove the file and its evidence. raises NotWritten"""
    with locked(path.parent):
        _remove(path)


def _there(path: Path) -> dict[str, Record]:
    return read_baseline(path) if _exists(path) else {}


def _write(path: Path, cases: Mapping[str, Record]) -> None:
    """Write the evidence, then the JSON that names it, then remove evidence that no JSON names any more."""
    # Cases share arrays (documents, float losses); safetensors wants each stored apart.
    blob = save({k: v.clone().contiguous() for case in cases.values() for k, v in _arrays(case).items()})
    digest = hashlib.sha256(blob).hexdigest()
    evidence = path.with_name(f"{path.stem}.{digest[:12]}.safetensors")
    write(evidence, blob)
    entries = {case_id: _entry(cases[case_id]) for case_id in sorted(cases)}
    document = {
        "schema": SCHEMA,
        "evidence": {"file": evidence.name, "sha256": digest},
        "sha256": _digest(entries),
        "cases": entries,
    }
    write(path, _dump(document))
    _remove_evidence(path, but=evidence)


def _remove(path: Path) -> None:
    """Remove the JSON first, so that none ever names what is not there."""
    remove(path)
    _remove_evidence(path)


def _remove_evidence(path: Path, but: Path | None = None) -> None:
    """Remove evidence of this file alone: another model's name may begin like this one's."""
    of_this = re.compile(re.escape(path.stem) + r"\.[0-9a-f]{12}\.safetensors")
    for old in path.parent.glob("*.safetensors"):
        if old != but and of_this.fullmatch(old.name):
            with suppress(NotWritten):  # no JSON names it any more; the next write tries again
                remove(old)


def read_baseline(path: Path) -> dict[str, Record]:
    """Read every stored case; an older schema is brought up to date on the way.

    raises BadArtefact when unreadable, corrupt, from a newer schema, or without its evidence
    """
    return read_pair(lambda: _text(path), lambda text: _parsed(path, text))


def _text(path: Path) -> bytes:
    check_fetched(path, BadArtefact)
    try:
        if not _exists(path):
            raise BadArtefact(f"{path}: {path.name} is missing; {_repair(path)}")
        return read_bytes(path)
    except Unreadable as error:
        raise BadArtefact(f"{shown(path)} is not a readable baseline ({error.why}); {_repair(path)}") from None


def _parsed(path: Path, text: bytes) -> dict[str, Record]:
    """Read a baseline file's text, and the evidence that it names. raises BadArtefact"""
    try:
        document = parse_json(text, path)
        schema = document["schema"]
        if type(schema) is not int or schema < 1:
            raise ValueError(f"no schema is numbered {schema!r}")
        if schema > SCHEMA:
            raise NewerSchema(
                f"{path} has schema {schema}, this version of quambench reads 1 to {SCHEMA}:"
                " update quambench, or restore the file from git"
            )
        name, digest = document["evidence"]["file"], document["evidence"]["sha256"]
        if Path(name).name != name:
            raise ValueError(f"the evidence must stand beside it (got {name!r})")
        evidence = path.with_name(name)
        if not _exists(evidence):
            raise BadArtefact(f"{path}: {shown(name)} is missing; {_repair(path)}")
        check_fetched(evidence, BadArtefact)
        blob = read_bytes(evidence)
        if hashlib.sha256(blob).hexdigest() != digest:
            raise BadArtefact(f"{evidence} is not the evidence that {path.name} names; {_repair(path)}")
        if (schema > 1 or "sha256" in document) and _digest(document["cases"]) != document["sha256"]:
            raise BadArtefact(f"{path} was edited by hand; {_repair(path)}")
        entries, arrays = migrated(document["cases"], load(blob), schema)
        return {case_id: _record(case_id, entry, arrays) for case_id, entry in entries.items()}
    except Unreadable as error:
        raise BadArtefact(f"{shown(path)} is not a readable baseline ({error.why}); {_repair(path)}") from None
    # A hand-edited file can break any of the steps above in its own way: whatever it trips, it is
    # the file that is at fault.
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise BadArtefact(f"{path} is not a readable baseline ({_short(error)}); {_repair(path)}") from None
    except (SafetensorError, OSError, RecursionError) as error:
        raise BadArtefact(f"{path} is not a readable baseline ({_short(error)}); {_repair(path)}") from None


def _folders(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except (OSError, ValueError):
        return []


def _exists(path: Path) -> bool:
    """Whether anything is there, of any kind. An impossible name gives False."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _digest(entries: Mapping[str, Any]) -> str:
    """Return a hash of all that the JSON says of its cases: results are measured, never typed."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _repair(path: Path) -> str:
    return f"git checkout {path.parent} restores it, --qb-update records it anew"


def _unescaped(name: str) -> str:
    """Return a name as JSON spells it; a broken one as it stands."""
    with suppress(ValueError):
        return str(json.loads(name))
    return name[1:-1]


def _short(error: BaseException) -> str:
    text = " ".join(shown(f"{type(error).__name__}: {error}").split())
    return text if len(text) <= 200 else text[:200] + "..."


def _arrays(record: Record) -> dict[str, torch.Tensor]:
    scales = record.artefacts.scales
    named = dict(record.evidence) | {f"noise.{rows}": array for rows, array in record.noise.sites.items()}
    named |= {f"{_REST}{name}": array for name, array in record.rest.items()}
    named |= {
        "artefacts.scales": torch.cat(list(scales.values())),
        "artefacts.sizes": torch.tensor([s.numel() for s in scales.values()], dtype=torch.int32),
    }
    return {f"{record.case_id}{_SEPARATOR}{name}": array for name, array in named.items()}


def _entry(record: Record) -> dict[str, Any]:
    return {
        "protocol": record.protocol,
        "artefacts": record.artefact_digest,
        "metrics": {n: [_number(m.value), _number(m.standard_error)] for n, m in sorted(record.metrics.items())},
        "noise": {
            kind: {n: _number(v) for n, v in sorted(values.items())}
            for kind in _FLOORS
            for values in (getattr(record.noise, kind),)
        },
        "rest": record.rest_digest,
        "settings": dict(sorted(record.settings.items())),
        "provenance": dict(record.provenance),
        "weights": dict(record.artefacts.digests),
        "scales": list(record.artefacts.scales),
    } | ({"accepted": record.accepted} if record.accepted else {})


def _number(value: float) -> float | None:
    """Return a number for JSON, which has no NaN. 9 digits are more than any standard error here resolves."""
    return None if math.isnan(value) else float(f"{value:.9g}")


def _floors(stored: Mapping[str, Any]) -> dict[str, float]:
    """Return the floors of one kind, by name. raises ValueError for one that is no number: everything would be noise"""
    floors = {name: math.nan if value is None else float(value) for name, value in stored.items()}
    for name, floor in floors.items():
        if not 0 <= floor < math.inf:
            raise ValueError(f"the noise of {name} must be a number of 0 or more (got {floor})")
    return floors


def _record(case_id: str, entry: Mapping[str, Any], arrays: Mapping[str, torch.Tensor]) -> Record:
    check_entry(entry)
    prefix = case_id + _SEPARATOR
    own = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    noise = {rows: own.pop(f"noise.{rows}") for rows in SITE_ROWS if f"noise.{rows}" in own}
    rest = {name.removeprefix(_REST): own.pop(name) for name in list(own) if name.startswith(_REST)}
    flat, sizes = own.pop("artefacts.scales"), own.pop("artefacts.sizes").tolist()
    scales = dict(zip(entry["scales"], flat.split(sizes), strict=True))
    if lacking := [rows for rows in noise if rows not in own]:
        raise ValueError(f"{lacking[0]} is missing, and its noise is there")
    check_scales(scales, symmetric=entry["settings"].get("symmetric", True) is True)
    n_sites = len(set(scales) - set(entry["weights"]))
    check_arrays(own | {f"noise.{rows}": array for rows, array in noise.items()}, n_sites)
    check_arrays(rest, None)
    known = metrics_of(own)
    metrics = {n: _measured(known[n], entry, own) for n in entry["metrics"] if n in known}
    record = Record(
        case_id=case_id,
        settings=dict(entry["settings"]),
        metrics=metrics,
        restated=_restated(entry, metrics, known),
        evidence=own,
        artefacts=Artefacts(scales, dict(entry["weights"])),
        provenance=dict(entry["provenance"]),
        noise=Noise(sites=noise, **{kind: _floors(entry["noise"][kind]) for kind in _FLOORS}),
        accepted=str(entry.get("accepted", "")),
        rest=rest,
        rest_digest=str(entry["rest"]),
        gone=tuple(n for n in entry["metrics"] if n not in known),
    )
    if record.protocol != entry["protocol"] or record.artefact_digest != entry["artefacts"]:
        raise ValueError(f"{case_id}: settings or artefacts were edited by hand")
    return record


def _measured(metric: Metric, entry: Mapping[str, Any], evidence: Mapping[str, torch.Tensor]) -> Measurement:
    """Return a metric from the evidence, so that it can be paired; of another version as stored, for want of
    evidence.
    """
    if entry["settings"].get(f"metric.{metric.name}", metric.version) == metric.version:
        return metric.measure(evidence)
    value, error = (math.nan if number is None else float(number) for number in entry["metrics"][metric.name])
    return Measurement(value, error)


def _restated(
    entry: Mapping[str, Any], metrics: Mapping[str, Measurement], known: Mapping[str, Metric]
) -> dict[str, tuple[str, str]]:
    """Return metrics of unchanged version that the stored evidence gives otherwise today: (as stored, today)."""
    found = {}
    for name, measured in metrics.items():
        was = tuple(math.nan if number is None else float(number) for number in entry["metrics"][name])
        now = (measured.value, measured.standard_error)
        same_formula = entry["settings"].get(f"metric.{name}") == known[name].version
        if same_formula and not all(_as_stored(a, b) for a, b in zip(was, now, strict=True)):
            found[name] = (_told(*was), _told(*now))
    return found


def _as_stored(was: float, now: float) -> bool:
    """Whether two numbers are equal to the digits that are stored. NaN equals NaN alone."""
    return math.isclose(was, now, rel_tol=1e-6, abs_tol=1e-12) or (math.isnan(was) and math.isnan(now))


def _told(value: float, error: float) -> str:
    return f"{value:.6g}" if math.isnan(error) else f"{value:.6g} ± {error:.3g}"


def _dump(document: Mapping[str, Any]) -> str:
    """Return the JSON text with one line per field of a case, so that a diff shows what moved."""
    head = json.dumps({k: v for k, v in document.items() if k != "cases"}, indent=1)[:-2]
    blocks = []
    for case_id, entry in document["cases"].items():
        lines = ",\n".join(f"   {json.dumps(k)}: {json.dumps(v)}" for k, v in entry.items())
        blocks.append(f"  {json.dumps(case_id)}: {{\n{lines}\n  }}")
    return head + ',\n "cases": {\n' + ",\n".join(blocks) + "\n }\n}\n"
