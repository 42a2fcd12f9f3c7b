"""pytest-xdist: the cases of one model and protocol go to one worker, everything else to whoever is free.

Apart, workers would calibrate once each and measure twice what cases share. xdist's own `loadgroup`
cannot be asked: it writes the group into private fields of a test that pytest 9 no longer has.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from xdist.scheduler import LoadScopeScheduling

from quambench.case import SIZES


class ByModel(LoadScopeScheduling):
    def __init__(self, config: Any, log: Any, models: Collection[str]) -> None:
        super().__init__(config, log)
        self._models = models

    def _split_scope(self, nodeid: str) -> str:
        return scope(nodeid, self._models)


def scope(nodeid: str, models: Collection[str]) -> str:
    """What must stay together: "mamba-tiny", "mamba-tiny/quick"; a test that is no case stays alone."""
    model, _, rest = nodeid.partition("[")[2].removesuffix("]").partition("/")
    if model not in models:
        return nodeid
    size = next((part for part in rest.split("/") if part in SIZES), "")
    return f"{model}/{size}" if size else model
