"""The bundled models are what their cards say, and good enough to judge quantization with."""

from __future__ import annotations

import re
from importlib import resources

import pytest
import torch

from quambench.data.corpus import load_corpus
from quambench.data.tasks import last_word_items
from quambench.data.windows import full_windows
from quambench.evaluate import last_word_correct
from quambench.models.checkpoint import bundled_names, load_checkpoint
from quambench.models.zoo.recipe import RECIPES
from quambench.models.zoo.train import bits_per_byte

# The bars, over the whole test part in windows of 512 tokens, every byte counted.
BARS = {"mamba-tiny": 1.75, "mamba2-tiny": 1.65}


def card(name: str) -> str:
    return (resources.files("quambench.models.zoo") / name / "README.md").read_text(encoding="utf-8")


def test_every_recipe_has_its_bundled_model():
    assert set(bundled_names()) == set(RECIPES) == set(BARS)


@pytest.mark.parametrize("name", BARS)
def test_the_card_names_these_very_weights(name):
    assert load_checkpoint(name).digest[:16] in card(name)


@pytest.mark.parametrize("name", BARS)
def test_the_weights_are_the_recipes_shape_and_small(name):
    assert load_checkpoint(name).config == RECIPES[name].config
    assert (resources.files("quambench.models.zoo") / name / "model.safetensors").stat().st_size <= 12e6


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
