"""Training: resumable to the bit, logged, and able to learn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from quambench.data import recall
from quambench.data.corpus import Corpus, Document
from quambench.models import ModelConfig
from quambench.models.checkpoint import load_checkpoint
from quambench.models.zoo import source as zoo_source
from quambench.models.zoo import train as training
from quambench.models.zoo.recipe import RECIPES, VOCAB_SIZE, Prose, Recall, Recipe
from quambench.models.zoo.source import source_of

TINY = {
    "mamba": ModelConfig(architecture="mamba", d_model=16, n_layers=1, vocab_size=VOCAB_SIZE, d_state=4, dt_rank=2),
    "mamba2": ModelConfig(
        architecture="mamba2", d_model=16, n_layers=1, vocab_size=VOCAB_SIZE, d_state=4, head_dim=8, chunk_size=8
    ),
}


def recipe(architecture: str, **changes) -> Recipe:
    """Changes to the recipe, or `epochs` of its prose."""
    data = Prose(epochs=changes.pop("epochs", 2), window=16, batch=4)
    base = Recipe(config=TINY[architecture], data=data, warmup_steps=2)
    return replace(base, **changes)


def recall_recipe(architecture: str, **changes) -> Recipe:
    config = replace(TINY[architecture], vocab_size=recall.VOCAB_SIZE)
    return replace(Recipe(config=config, data=Recall(steps=6, batch=4), embedding_std=0.1), **changes)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    def document(name: str, start: int) -> Document:
        words = (f"the state number {(start + i) % 7} of the union is strong" for i in range(40))
        return Document.of(name, ". ".join(words).encode())

    return Corpus("made", {"train": (document("a", 0), document("b", 3)), "validation": (document("c", 5),)})


class Stopped(Exception):
    """The run was cut off here."""


@pytest.mark.parametrize("architecture", TINY)
@pytest.mark.parametrize("make", [recipe, recall_recipe], ids=["prose", "recall"])
def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(make, architecture, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "LOG_STEPS", 1)
    monkeypatch.setattr(training, "SAVE_SECONDS", -1.0)  # after every step
    whole = training.train(make(architecture), corpus, tmp_path / "whole")

    def stop_in_the_middle(done: int, total: int, line: str) -> None:
        if done == total // 2:
            raise Stopped

    with pytest.raises(Stopped):
        training.train(make(architecture), corpus, tmp_path / "broken", progress=stop_in_the_middle)
    resumed = training.train(make(architecture), corpus, tmp_path / "broken")
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_another_seed_gives_other_weights(corpus, tmp_path):
    a = training.train(recipe("mamba2", epochs=1), corpus, tmp_path / "a")
    b = training.train(recipe("mamba2", epochs=1, seed=1), corpus, tmp_path / "b")
    assert not torch.equal(a.lm_head.weight, b.lm_head.weight)


def test_a_folder_of_another_recipe_is_refused(corpus, tmp_path):
    training.train(recipe("mamba2", epochs=1), corpus, tmp_path)
    with pytest.raises(ValueError, match="another recipe"):
        training.train(recipe("mamba2", epochs=3), corpus, tmp_path)


def test_training_learns_and_logs_and_publishes(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "LOG_STEPS", 10)
    model = training.train(recipe("mamba2", epochs=30, dropout=0.0), corpus, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["train_nats"] < lines[0]["train_nats"] / 2  # the text repeats: half is far less than it can learn
    assert lines[-1]["tokens"] == lines[-1]["step"] * 4 * 16
    assert "validation_bits_per_byte" in lines[-1]
    training.publish(model, recipe("mamba2"), tmp_path)
    loaded = load_checkpoint(str(tmp_path))
    assert torch.equal(loaded.model.lm_head.weight, model.lm_head.weight.half().float())


def test_the_optimizer_decays_matrices_only():
    from quambench.models import build

    model = build(TINY["mamba"])
    decayed, rest = training._optimizer(model, recipe("mamba")).param_groups
    names = {id(p): n for n, p in model.named_parameters()}
    assert decayed["weight_decay"] > 0
    assert rest["weight_decay"] == 0
    assert {names[id(p)].rpartition(".")[2] for p in rest["params"]} >= {"A_log", "D", "bias"}
    assert all(not names[id(p)].endswith(("A_log", ".D", "bias")) for p in decayed["params"])


def test_recipes_meet_what_groups_will_need():
    config = RECIPES["mamba2-tiny"].config
    assert config.d_inner >= 512
    assert config.head_dim >= 32
    assert config.n_heads // config.n_groups >= 16
    assert all(r.config.vocab_size <= 2048 for r in RECIPES.values())
    assert all(Path(name).name == name for name in RECIPES)  # names are folder names


def test_recall_batches_climb_their_ladders(corpus, tmp_path):
    made = recall_recipe("mamba2", data=Recall(steps=1000, batch=2))
    source = source_of(made, corpus, tmp_path)
    widths = [source.batch(step)[0].shape[1] for step in range(0, 1000, 5)]  # associative alone
    assert max(widths[:2]) <= 4 * 2 + 1
    assert max(widths) > 2 * recall.LADDERS["associative"][-2]
    inputs, targets = source.batch(3)
    assert (inputs[:, 0] == recall.START).all()
    assert ((targets >= 0).sum(1) >= 1).all()


def test_an_unlearned_recall_model_is_not_published(corpus, tmp_path):
    made = recall_recipe("mamba2")
    model = training.train(made, corpus, tmp_path)
    with pytest.raises(ValueError, match="does not reach 99%"):
        training.publish(model, made, tmp_path)
    assert not (tmp_path / "recall.json").exists()


def test_the_scored_rung_is_the_hardest_one_reached(monkeypatch):
    lengths = {
        task: [recall.sequences(task, r, 1, "test").inputs.shape[1] for r in recall.LADDERS[task]]
        for task in recall.TASKS
    }
    known = {length for found in lengths.values() for length in found[:3]}
    monkeypatch.setattr(zoo_source, "recall_accuracy", lambda model, made: float(made.inputs.shape[1] in known))
    assert zoo_source.scored_rungs(None, count=1) == {task: recall.LADDERS[task][2] for task in recall.TASKS}


def test_accuracy_counts_sequences_with_every_answer_right():
    class Half:
        """Right about everything in the first sequence, wrong once in the second."""

        lm_head = torch.nn.Linear(1, 1)

        def __call__(self, inputs):
            guesses = made.tokens.clone()
            guesses[1, int(made.answers[1].nonzero()[0])] = 0
            return torch.nn.functional.one_hot(guesses, recall.VOCAB_SIZE).float(), None

    made = recall.sequences("associative", 4, 2, "test")
    assert zoo_source.recall_accuracy(Half(), made) == 0.5
