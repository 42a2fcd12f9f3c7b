"""The end of a run over suites: what is stored and got no verdict is gone, or nobody knows; nothing is green by it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from quambench.models.checkpoint import bundled_names
from quambench.plugin.collected import Collected, moved, standing, suite_of
from quambench.plugin.marks import Asked
from quambench.session.session import Session


@dataclass(frozen=True)
class Run:
    """One run of pytest, as it ended."""

    root: Path  # of the project: suites/ stands there
    given: tuple[Path, ...]  # the files and folders that were asked for
    narrowed: bool  # options or arguments left tests out
    asked: Asked
    collected: Collected
    session: Session

    @property
    def whole_folder(self) -> bool:
        """Whether all suites were asked for."""
        suites = (self.root / "suites").resolve()
        return any(suites.is_relative_to(given) for given in self.given)

    @property
    def own_cases(self) -> bool:
        """Whether it was a run of all that the suites themselves produce, for the bundled models."""
        return not (self.narrowed or self.asked.models or self.asked.replaces)

    def settle(self) -> bool:
        """Judge what is stored and was not run, and say what is unknown. Returns whether all of it passes."""
        session, passes = self.session, self._tell_of_tests()
        n_judged = len(session.verdicts)
        if not self.own_cases:
            return passes
        for suite, files, why in self.suites if n_judged else ():
            if not why:
                session.orphans(suite, self.collected.produced(files), self.asked.full, bundled_names())
        if any(v.case_id.startswith("probe/") for v in session.verdicts) and not self._unfinished:
            session.gone_probes()
        session.notes += [f"{suite}: {n} stored case(s) were not judged: {why}" for suite, n, why in self.unjudged]
        models = {model for suite, *_ in self.suites for model in session.store.models(suite)}
        if others := sorted(models - set(bundled_names())):
            session.notes.append(f"what is stored for {', '.join(others)} was not judged: --qb-model asks for it")
        return passes and all(v.passes(session.allow_drift) for v in session.verdicts[n_judged:])

    @property
    def judged_nothing(self) -> bool:
        """Whether verdicts were asked for and none was made."""
        asked = any(self.collected.items[nodeid].asks for nodeid in self.collected.chosen) or bool(self.unjudged)
        return asked and not self.session.verdicts

    def _tell_of_tests(self) -> bool:
        """Verdicts that no test answers for: expected by the author, swallowed, or lost with a worker."""
        notes, passes = self.session.notes, True
        for reason, row in self.collected.excused:
            notes.append(
                f"{row.status} {row.case_id} passes: its test is marked xfail ({reason or 'without a reason'})"
            )
        for nodeid, row in self.collected.swallowed:
            notes.append(f"{row.status} {row.case_id} fails the run: {nodeid} caught what judge raised")
            passes = False
        for worker in self.collected.lost:
            notes.append(f"{worker} crashed: what it was doing is lost, and what it had finished is not")
            passes = False
        return passes

    @property
    def _unfinished(self) -> str:
        """Why this was no run of everything that was collected; "" where it was."""
        if self.collected.lost:
            return f"{self.collected.lost[0]} crashed"
        return f"{self.collected.left_out[0]} did not run" if self.collected.left_out else ""

    @cached_property
    def suites(self) -> list[tuple[str, set[Path], str]]:
        """(suite, its files, why it is unknown) of each stored suite that was asked for; gone: no file and no why."""
        found = []
        for suite in self.session.store.suites():
            files = self._files(suite)
            if files & self.collected.files or (files and self.whole_folder):
                found.append((suite, files, self.collected.unknown(files)))
            elif self.whole_folder:
                found.append((suite, files, self._unfinished or self._elsewhere(suite)))
        return found

    @cached_property
    def _on_disk(self) -> dict[str, set[Path]]:
        return standing(self.root / "suites")

    def _files(self, suite: str) -> set[Path]:
        """Every file that is this suite, or may be; a test of another thing may have the same name."""
        named = {file for file in self.collected.files if suite_of(file) == suite}
        return self._on_disk.get(suite, set()) | {file for file in named if self.collected.is_suite(file)}

    def _elsewhere(self, suite: str) -> str:
        there = moved(self.root, suite)
        return f"it may be {there.relative_to(self.root.resolve())}, which was not collected" if there else ""

    @cached_property
    def unjudged(self) -> list[tuple[str, int, str]]:
        """(suite, number of stored cases without a verdict, why) of each suite that is unknown."""
        found = []
        for suite, files, why in self.suites if self.own_cases else ():
            stored = self.session.stored(suite, self.asked.full, bundled_names())
            if why and (n := len(stored - self.collected.judged(files))):
                found.append((suite, n, why))
        return found

    @property
    def replaceable(self) -> set[tuple[str, str]]:
        """(suite, model) of which every case of the suite's own ran and is to be stored."""
        if self.narrowed or self.asked.replaces:
            return set()
        found = set()
        for (suite, model), records in self.session.to_write.items():
            files, ran = self._files(suite), {case.id for case, _ in records}
            if not self.collected.unknown(files) and ran == self.collected.produced(files, model):
                found.add((suite, model))
        return found
