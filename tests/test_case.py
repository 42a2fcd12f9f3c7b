"""Cases: ids for people, protocol hashes for machines."""

from __future__ import annotations

from dataclasses import replace

from quambench.case import Case, Protocol, protocol_hash
from quambench.observers import ObserverSpec
from quambench.quant.quantized import Precision

CASE = Case(model="mamba2-tiny", observer=ObserverSpec.parse("percentile[alpha=0.9995,sigma=0.01]"))


def test_the_id_reads_as_a_person_would_write_it():
    assert CASE.id == "mamba2-tiny/percentile[alpha=0.9995,sigma=0.01]/1x1"
    other = replace(CASE, precision=Precision(act_bits=4, lm_head=False), policy="other")
    assert other.id.endswith("/1x1/other/w8a4-float_lm_head")


def test_everything_that_changes_a_number_changes_the_hash():
    changes = {
        "model": "x", "observer": ObserverSpec("running_max"), "grouping": "4x4", "policy": "p",
        "precision": Precision(act_bits=4), "protocol": Protocol(calib_windows=1),
    }  # fmt: skip
    hashes = {protocol_hash(replace(CASE, **{k: v}).settings()) for k, v in changes.items()}
    assert len(hashes | {protocol_hash(CASE.settings())}) == len(changes) + 1


def test_two_spellings_of_one_observer_share_a_hash():
    short = replace(CASE, observer=ObserverSpec("percentile"))
    assert protocol_hash(short.settings()) == protocol_hash(CASE.settings())
