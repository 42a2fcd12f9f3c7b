"""The running maximum."""

from __future__ import annotations

import torch

from quambench.observers.running_max import MIN_AMAX, RunningMax


def test_by_hand():
    observer = RunningMax()
    for batch in ([[1.0, -5.0]], [[2.0, 3.0]]):
        observer.update(torch.tensor(batch))
    assert observer.amax.item() == 5.0
    assert observer.scale().item() == torch.tensor(5.0 / 127, dtype=torch.float64).float().item()


def test_silence_is_floored_as_in_the_original():
    observer = RunningMax()
    observer.update(torch.zeros(1, 4))
    assert observer.amax.item() == MIN_AMAX


def test_channels_keep_their_own():
    observer = RunningMax()
    observer.update(torch.tensor([[[1.0], [-9.0]], [[4.0], [2.0]]]))  # (n_obs 2, channels 2, group 1)
    assert observer.amax.tolist() == [4.0, 9.0]
