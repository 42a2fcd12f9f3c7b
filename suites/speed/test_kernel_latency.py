"""Each kernel against its counterpart, at the shapes of published models; the ratio against the stored one.

Nothing here compares a time with a stored time: see quambench/bench/.
"""

from __future__ import annotations

from dataclasses import asdict

import torch


def test_kernel(row, latency, benchmark):
    with torch.inference_mode():
        verdict = latency(row)
        benchmark.extra_info |= {"against": row.counterpart, "ratio": asdict(verdict.latest), "status": verdict.status}
        call, _ = row.make()
        benchmark.pedantic(call, rounds=5, warmup_rounds=1)
    assert not verdict.fails, f"{row.name}, against {row.counterpart}: {verdict}"
