"""Second moments of the inputs of the projections that GPTQ rounds, over the calibration tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from quambench.calibration.collect import FORWARD_BATCH
from quambench.int8.gptq import accumulate
from quambench.models.backbone import LanguageModel

READS = {"in_proj:input": "in_proj.weight", "out_proj:input": "out_proj.weight", "lm_head:input": "lm_head.weight"}
"""Site, in its block, whose values a projection multiplies with -> that projection's weight."""


@torch.no_grad()
def gather_hessians(prepared: LanguageModel, sequences: Tensor) -> dict[str, Tensor]:
    """Return weight name -> (in, in) float64, the sum of x xT over all tokens of sequences (S, L) int64.

    x is the weight's input in the float model. Source: GPTQ (Frantar et al. 2023, arXiv:2210.17323).
    """
    found: dict[str, Tensor] = {}

    def watch(site: str, x: Tensor) -> Tensor:
        prefix, _, name = site.rpartition(".")
        if name in READS:
            weight = f"{prefix}.{READS[name]}" if prefix else READS[name]
            before = found.get(weight, torch.zeros(x.shape[-1], x.shape[-1], dtype=torch.float64))
            found[weight] = accumulate(before, x.double())
        return x

    for rows in sequences.split(FORWARD_BATCH):
        prepared(rows, tap=watch)
    return found
