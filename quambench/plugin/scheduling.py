"""pytest-xdist: the cases of one model and protocol go to one worker, everything else to whoever is free.

Apart, workers would calibrate once each and measure twice what cases share. xdist's own `loadgroup`
cannot be asked: it writes the group into private fields of a test that pytest 9 no longer has.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from xdist.scheduler import LoadScopeScheduling

from quambench.case import SIZES


class ByModel(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """xdist's scheduler by scope, but for what it does when a worker dies."""

    def __init__(self, config: Any, log: Any, models: Collection[str]) -> None:
        super().__init__(config, log)
        self._models = models

    def remove_node(self, node: Any) -> str | None:
        """Take a worker's tests back; the one that it died of has failed, and is not given to another to die of."""
        units = self.assigned_work.pop(node)
        waiting = [(unit, test) for unit in units.values() for test, done in unit.items() if not done]
        if not waiting:
            return None
        crashed: str
        unit, crashed = waiting[0]
        unit[crashed] = True
        self.workqueue.update({scope: unit for scope, unit in units.items() if not all(unit.values())})
        for other in self.nodes:
            self._reschedule(other)
        return crashed

    def schedule(self) -> None:
        """Also for a worker that replaces a dead one.

        A worker holds its last test back until it is given another or told that none is left: xdist tells
        those that it starts with, and a replacement with a single test would wait for ever.
        """
        super().schedule()
        for node in self.nodes:
            self._reschedule(node)

    def _split_scope(self, nodeid: str) -> str:
        return scope(nodeid, self._models)


def scope(nodeid: str, models: Collection[str]) -> str:
    """What must stay together: "mamba-tiny", "mamba-tiny/quick"; a test that is no case stays alone."""
    model, _, rest = nodeid.partition("[")[2].removesuffix("]").partition("/")
    if model not in models:
        return nodeid
    size = next((part for part in rest.split("/") if part in SIZES), "")
    return f"{model}/{size}" if size else model
