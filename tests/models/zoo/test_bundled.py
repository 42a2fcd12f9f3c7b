"""The bundled models are what their cards say, and good enough to judge quantization with."""

from __future__ import annotations

import re
from importlib import resources

import pytest
import torch

from quambench.data import recall
from quambench.data.corpus import load_corpus
from quambench.data.tasks import last_word_items
from quambench.data.windows import full_windows
from quambench.evaluation.reference import last_word_correct
from quambench.models.checkpoint import bundled_names, load_checkpoint
from quambench.models.zoo.recipe import RECIPES
from quambench.models.zoo.source import bits_per_byte, recall_accuracy

# The bars, over the whole test part in windows of 512 tokens, every byte counted.
BARS = {"mamba-tiny": 1.75, "mamba2-tiny": 1.65}
RECALL = ("mamba-recall", "mamba2-recall")
MEGABYTES = dict.fromkeys(BARS, 12) | dict.fromkeys(RECALL, 4)


def card(name: str) -> str:
    return (resources.files("quambench.models.zoo") / name / "README.md").read_text(encoding="utf-8")


def test_every_recipe_has_its_bundled_model():
    assert set(bundled_names()) == set(RECIPES) == {*BARS, *RECALL}
    assert bundled_names("prose") == tuple(BARS)
    assert bundled_names("recall") == RECALL


@pytest.mark.parametrize("name", MEGABYTES)
def test_the_card_names_these_very_weights(name):
    assert load_checkpoint(name).digest[:16] in card(name)


@pytest.mark.parametrize("name", MEGABYTES)
def test_the_weights_are_the_recipes_shape_and_small(name):
    assert load_checkpoint(name).config == RECIPES[name].config
    assert (resources.files("quambench.models.zoo") / name / "model.safetensors").stat().st_size <= MEGABYTES[
        name
    ] * 1e6


@pytest.mark.slow
@pytest.mark.parametrize("name", BARS)
def test_held_out_bits_per_byte(name):
    checkpoint = load_checkpoint(name)
    documents = load_corpus().part("test")
    windows = full_windows(documents, checkpoint.tokenizer, length=512)
    assert windows.n_bytes == sum(len(d.text.encode()) for d in documents)
    measured = bits_per_byte(checkpoint.model, windows)
    assert measured <= BARS[name]
    stated = float(re.search(r"\*\*([\d.]+) bits per byte\*\*", card(name))[1])
    assert abs(measured - stated) < 5e-4  # the card gives three decimals


@pytest.mark.slow
@pytest.mark.parametrize("name", BARS)
def test_last_word_accuracy_is_clear_of_guessing(name):
    checkpoint = load_checkpoint(name)
    items = last_word_items(load_corpus().part("test"), checkpoint.tokenizer)
    correct = last_word_correct(checkpoint.model, items).double()
    guess = items.chance.mean()
    standard_error = torch.sqrt((correct - items.chance).var() / len(correct))
    assert (correct.mean() - guess) / standard_error > 3


@pytest.mark.parametrize("name", RECALL)
def test_recall_models_answer_99_percent_at_their_rungs(name):
    """On the test part, not on the part that chose the rungs: 3 standard errors of 400 at 99 % are 1.5 points."""
    checkpoint = load_checkpoint(name)
    for task, rung in checkpoint.recall.items():
        assert recall_accuracy(checkpoint.model, recall.sequences(task, rung, 400, "test")) >= 0.99 - 0.015
