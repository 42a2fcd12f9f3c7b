"""Claims on ranges: from calibration to runtime, what is clipped, what a symmetric grid wastes."""

from __future__ import annotations

import torch
from torch import Tensor

from quambench.claims.base import PERCENT, Claim, Gain, InRange, Interval, Measured, Row, family, row
from quambench.claims.compared import no_gain_rows
from quambench.claims.sources import Sources
from quambench.claims.stored import Shelf, at_sites
from quambench.gate.record import Record

NEAR = 0.10
CLIPPED = (0.001, 0.01)
HALF = 0.5
AFTER_SILU = frozenset({"x_proj:input", "x_conv_out", "B_conv_out", "C_conv_out"})  # at least -0.278: one-sided


@family(
    "Activation range, calibration against runtime",
    "Per site the largest |x| of the test part over the largest of the calibration part; its distance from 1, averaged"
    " over sites. Fresh rows: float model, 64 sequences of 128 tokens of each part. Stored rows: a few windows"
    " against 256 sequences of 128 tokens, so that many times fewer values reach less far by themselves.",
)
def drift(sources: Sources) -> list[Row]:
    claim = Claim(words="the range at runtime is the calibrated one", figure="within ±10 %", expects=InRange(0, NEAR))
    rows = []
    for name, shelf in sources.prose:
        rows.append(row(claim, name, _fresh, sources, name))
        rows.append(row(claim, name, _stored, shelf))
    return rows


def _fresh(sources: Sources, model: str) -> Measured:
    fresh = sources.measured(model)
    calibrated, runtime = fresh.seen.largest, fresh.seen_at_runtime.largest
    ratios = torch.stack([runtime[site].max() / calibrated[site].max() for site in calibrated])
    return distance(ratios, "as many tokens of each part, float")


def _stored(shelf: Shelf) -> Measured:
    (record,) = shelf.find("running_max")
    return distance(at_sites(record, "sites.range_used"), f"stored `running_max`, {error_windows(record)}")


def error_windows(record: Record) -> str:
    return f"{record.settings['error_windows']} windows of {record.settings['error_length']} tokens"


def distance(ratios: Tensor, data: str) -> Measured:
    """Return how far ranges moved: ratios (n_sites), runtime over calibration."""
    away = (ratios - 1).abs()
    within = int((away <= NEAR).sum())
    remark = (
        f"{within} of {len(away)} sites within ±10 %; from {ratios.min().item():.2f} to {ratios.max().item():.2f} times"
        " the calibrated maximum"
    )
    effect = Interval.of_mean(away).from_zero()
    return Measured(effect=effect, unit=PERCENT, n=f"{len(away)} sites", data=data, remark=remark)


@family(
    "Values clipped at runtime",
    "Share of values beyond the grid's ends on the test part, at the sites that take the percentile; a layer is one"
    " observation.",
)
def clipped(sources: Sources) -> list[Row]:
    rows = []
    for _, shelf in sources.prose:
        for site in _case_sites(shelf):
            claim = Claim(words=f"clipped at {site}, `percentile`", figure="0.1-1 %", expects=InRange(*CLIPPED))
            rows.append(row(claim, shelf.model, _clipped, shelf, site))
    return rows


def _case_sites(shelf: Shelf) -> list[str]:
    return ["x_proj:input" if shelf.architecture == "mamba" else "x_conv_out", "ssm_state"]


def _clipped(shelf: Shelf, site: str) -> Measured:
    (record,) = shelf.find("percentile")
    shares = at_sites(record, "sites.clipped", frozenset({site}))
    remark = f"from {shares.min().item() * 100:.3g} to {shares.max().item() * 100:.3g} % over layers"
    effect = Interval.of_mean(shares).from_zero()
    data = error_windows(record)
    return Measured(effect=effect, unit=PERCENT, n=f"{len(shares)} layers", data=data, remark=remark)


@family(
    "Symmetric or asymmetric grids",
    "Waste is the part of the grid that no value of the test part reaches, at sites behind a SiLU (no value below"
    " -0.278): what a symmetric grid wastes more than an asymmetric one, which also has ends that few windows do not"
    " reach. Then what an asymmetric grid gains in quality; with `percentile` each end keeps α of all values, so"
    " two-sided data are clipped up to twice as much, which `running_max` does not do. The runtime has no zero points:"
    " these cases are there for this comparison alone.",
)
def symmetry(sources: Sources) -> list[Row]:
    rows = []
    for _, shelf in sources.prose:
        claim = Claim(words="symmetry wastes range on one-sided data", figure="up to half", expects=Gain(0, HALF))
        rows.append(row(claim, shelf.model, _wasted, shelf))
        for observer in ("percentile", "running_max"):
            words = f"asymmetric is no better than symmetric, `{observer}`"
            rows += no_gain_rows(shelf, words, observer, f"{observer}/w8a8-asymmetric")
    return rows


def _wasted(shelf: Shelf) -> Measured:
    """Return the share of the range that a symmetric grid wastes beyond an asymmetric one, at sites of one-sided
    data.
    """
    records = shelf.find("running_max", "running_max/w8a8-asymmetric")
    symmetric, asymmetric = (at_sites(record, "sites.range_wasted", AFTER_SILU) for record in records)
    one, most, other = (x.item() * 100 for x in (symmetric.mean(), symmetric.max(), asymmetric.mean()))
    remark = f"the symmetric grid wastes {one:.3g} % (at most {most:.3g} %), the asymmetric one {other:.3g} %"
    return Measured(
        effect=Interval.of_mean(symmetric - asymmetric),
        unit=PERCENT,
        n=f"{len(symmetric)} sites",
        data="`running_max` - `running_max/w8a8-asymmetric`",
        remark=remark,
    )
