"""What a case is measured on, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What is measured on, and how much of it. Counts are of windows, lengths of tokens.

    The default is what `pytest suites/` can afford for every case; `FULL` is for a closer look.
    """

    calib_windows: int = 256
    calib_length: int = 128
    quality_windows: int = 48  # prefill: loss, KL, agreement
    quality_length: int = 256
    decode_windows: int = 40  # step by step: loss and KL after a float-free prefix
    decode_prefix: int = 32
    decode_steps: int = 64
    error_windows: int = 8  # local and accumulated error per site
    error_length: int = 256
    max_items: int = 160  # last-word items; 0 takes all
    recall_sequences: int = 100  # of each recall task, for models that know them
    long_windows: int = 4  # sequences of 8 times the training length, for the same models


FULL = Protocol(quality_windows=192, decode_windows=120, error_windows=16, max_items=0, recall_sequences=400)
"""--qb-full: about four times the default; standard errors half as large."""
QUICK = Protocol(quality_windows=24, decode_windows=20, error_windows=4, max_items=80)
"""Half the default: for suites of many cases, which compare strategies rather than guard one."""
LARGER = {Protocol(): FULL, QUICK: FULL}
"""Protocol -> the larger one whose rest a row that is suspicious is measured again on."""
SIZES = {"full": FULL, "quick": QUICK}  # suffix of such a case's id -> its protocol
_FULL = "full"


def is_full(case_id: str) -> bool:
    """Whether an id is of one of --qb-full's cases."""
    return _FULL in case_id.split("/")
