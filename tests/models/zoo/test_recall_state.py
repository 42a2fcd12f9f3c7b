"""The recall models do what they are for: a coarser state costs them answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from quambench.case import Case, Protocol
from quambench.data.corpus import Corpus
from quambench.evaluation.decoding import answers_right
from quambench.int8.model import quantize_model
from quambench.models.checkpoint import bundled_names, load_checkpoint
from quambench.observers import ObserverSpec
from quambench.run.runner import ModelRun


@pytest.mark.slow
@pytest.mark.parametrize("name", bundled_names("recall"))
def test_a_state_scale_four_times_too_large_costs_five_points(name):
    """Under the plain maximum, which clips nothing: a larger scale then only makes the state coarser."""
    case = Case(model=name, observer=ObserverSpec("running_max"), protocol=replace(Protocol(), recall_sequences=60))
    run = ModelRun(load_checkpoint(name), Corpus("none", {}), [case])
    made = run.calibrations[case]
    coarse = {s: x * 4 if s.endswith("ssm_state") else x for s, x in made.scales.items()}
    asked = run.data.recall["associative"]
    with torch.inference_mode():
        right, right_coarse = (
            answers_right(quantize_model(run.plain, calibration, case.precision), asked, by_steps=True).sum().item()
            for calibration in (made, replace(made, scales=coarse))
        )
    assert (right - right_coarse) / asked.answers.sum().item() >= 0.05
