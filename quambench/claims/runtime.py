"""Claims on the runtime, which is out of reach here."""

from __future__ import annotations

from quambench.claims.base import Row, cannot, family
from quambench.claims.sources import Sources


@family("The runtime", "Claims about kernels.")
def runtime(sources: Sources) -> list[Row]:
    uniform = "the runtime is a uniform INT8 grid, and there are no tensor cores here to lose"
    seconds = "the figure is a GPU's; what a step costs here against a float one, `quambench bench models` says"
    return [
        cannot("non-uniform grids would cost", "10-30×", uniform),
        cannot("time per token", "about 10 ms", seconds),
    ]
