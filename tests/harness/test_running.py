"""Tasks through the harness: their items, what each document scored, and what INT8 decoding loses."""

from __future__ import annotations

import json
import random
import socket
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from quambench.case import Case, Protocol
from quambench.core.errors import BadCorpus, BadParameter, OutsideFailed, UnknownName
from quambench.data import recall
from quambench.data.choices import cloze
from quambench.data.corpus import load_corpus
from quambench.data.tasks import endings, last_word_items, passages
from quambench.evaluation.decoding import answers_right
from quambench.evaluation.reference import last_word_correct
from quambench.harness import offered_tasks, tasks_folder
from quambench.harness.items import digest
from quambench.harness.running import load_tasks, run_tasks, task_evidence
from quambench.harness.subject import case_subject, subject_of
from quambench.metrics.tasks import task_metrics
from quambench.models.checkpoint import bundled_names, load_checkpoint
from quambench.run.runner import ModelRun

COUNTS = {  # and the items themselves, as the pinned corpus and the seeds give them
    "prose_cloze": (5716, "555be6f21535954d"),
    "prose_continuation": (1369, "37ad03ffcc8ff096"),
    "prose_lambada": (647, "a69a787302e68a10"),
    "recall_associative_32": (200, "9024dca3956081cd"),
    "recall_associative_48": (200, "dd13e8edbf149df3"),
    "recall_induction_192": (200, "d334d06d89d0cfb6"),
    "recall_selective_copy_12": (200, "cfcba5160ed50d2b"),
    "recall_selective_copy_8": (200, "8f08271e39c9e5f7"),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def loaded() -> Any:
    return load_tasks([task.name for task in offered_tasks()])


def about(name: str) -> dict[str, Any]:
    """A task's YAML without its functions."""
    text = (tasks_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text.replace("!function ", ""))


# --- items ----------------------------------------------------------------------------------------


def test_the_items_are_pinned(loaded: Any) -> None:
    found = {name: list(task.eval_docs) for name, task in loaded.by_name.items()}
    assert {name: (len(docs), digest(docs)[:16]) for name, docs in found.items()} == COUNTS


def test_tags_name_what_each_language_is_asked() -> None:
    assert load_tasks(["quambench_prose"]).names == ["prose_cloze", "prose_continuation", "prose_lambada"]
    for model in bundled_names("recall"):
        rungs = load_checkpoint(model).recall
        expected = sorted(f"recall_{task}_{rung}" for task, rung in rungs.items())
        assert sorted(load_tasks([model.replace("-", "_")]).names) == expected


def test_the_chance_that_a_task_states_is_its_own() -> None:
    documents = load_corpus().part("test")
    found = [p.chance for d in documents for p in passages(d.text)]
    assert about("prose_lambada")["metadata"]["chance"] == pytest.approx(sum(found) / len(found), abs=5e-4)
    for name in COUNTS:
        if name.startswith("recall"):
            assert about(name)["metadata"]["chance"] == pytest.approx(1 / recall.N_SYMBOLS, abs=5e-4)
    assert all(about(f"prose_{name}")["metadata"]["chance"] == 1 / 4 for name in ("cloze", "continuation"))


def test_what_frequency_alone_gets_right_is_stated() -> None:
    """Of prose_cloze, by whoever takes the word that most often ends passages; of several, any of them."""
    documents = load_corpus().part("test")
    counts = Counter(p.word for d in documents for p in endings(d.text))
    shares = []
    for item in cloze(documents):
        often = [counts[word] for word in item.choices]
        shares.append((often[item.right] == max(often)) / often.count(max(often)))
    assert about("prose_cloze")["metadata"]["most_frequent"] == pytest.approx(sum(shares) / len(shares), abs=5e-4)


def test_recall_documents_are_no_calibration_and_no_metric() -> None:
    """Neither the scored sequences nor those that serve as text, by their seeds."""
    asked = {d["context"] for d in load_tasks(["recall_induction_192"]).by_name["recall_induction_192"].eval_docs}
    speak = recall.tokenizer().decode
    for seed in range(5):
        others = recall.sequences("induction", 192, 200, "test", seed=seed).tokens.tolist()
        assert not asked & {speak(tokens[:-1]) for tokens in others}


def test_other_texts_give_other_items(world: Path) -> None:
    own = load_tasks(["prose_continuation"], corpus=world / "corpus").by_name["prose_continuation"]
    names = {d.name for d in load_corpus(world / "corpus").part("test")}
    assert {doc["document"] for doc in own.eval_docs} <= names


def test_texts_without_an_item_are_one_line(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"No passage here {i}.")
    for task in ("prose_lambada", "prose_cloze", "prose_continuation"):
        with pytest.raises(BadCorpus, match="the test documents hold no passage"):
            load_tasks([task], corpus=tmp_path)


def test_a_task_that_nobody_knows_is_one_line() -> None:
    with pytest.raises(UnknownName) as raised:
        load_tasks(["prose_lambda"])
    assert "Did you mean 'prose_lambada'" in str(raised.value)
    assert "\n" not in str(raised.value)


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_last_words_are_right_as_quambench_itself_has_them() -> None:
    """Two roads to one number: the harness' tokens, padding and greedy flag, and evaluate.last_word_correct."""
    subject = subject_of("mamba2-tiny", dtype="float64")
    documents = load_corpus().part("test")
    (found,) = run_tasks(subject, load_tasks(["prose_lambada"]))
    correct = last_word_correct(subject.model, last_word_items(documents, subject.tokenizer))
    assert found.values.sum() == correct.sum()
    assert 0 < found.values.sum() < len(found.values) == len(correct)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "n"), [("prose_cloze", 60), ("prose_continuation", 200)])
def test_a_bundled_model_stands_clear_of_chance(task: str, n: int) -> None:
    """By two and a half standard errors of a guesser: else a task could not show what quantization takes away."""
    (found,) = run_tasks(subject_of("mamba2-tiny"), load_tasks([task]), limit=n)
    assert found.values.mean() > 0.25 + 2.5 * (0.25 * 0.75 / n) ** 0.5


@pytest.fixture(scope="module")
def int8_recall() -> dict[str, Any]:
    """By precision: with the INT8 state, and with the state left float."""
    checkpoint = load_checkpoint("mamba2-recall")
    protocol = Protocol(calib_windows=32)
    cases = {p: Case.parse(checkpoint.name, f"running_max/{p}", protocol) for p in ("w8a8", "w8a8-float_ssm_state")}
    run = ModelRun(checkpoint, load_corpus(), cases.values())
    return {precision: case_subject(run, case, starts=True) for precision, case in cases.items()}


def test_recall_is_right_as_quambench_itself_has_it(int8_recall: dict[str, Any]) -> None:
    """Token by token from the first: decoding.answers_right on the same sequences."""
    subject, n = int8_recall["w8a8"], 24
    (found,) = run_tasks(subject, load_tasks(["recall_induction_192"]), limit=n)
    made = recall.sequences("induction", 192, 200, "test", seed=6)
    asked = replace(made, inputs=made.inputs[:n], tokens=made.tokens[:n], answers=made.answers[:n])
    assert found.values.tolist() == answers_right(subject.model, asked, by_steps=True).double().tolist()


def test_recall_tasks_see_the_int8_state_and_prefill_would_not(
    int8_recall: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = load_tasks(["recall_associative_48"])
    share = {p: run_tasks(s, tasks, limit=48)[0].values.mean().item() for p, s in int8_recall.items()}
    assert share["w8a8-float_ssm_state"] > 0.95
    assert share["w8a8"] < share["w8a8-float_ssm_state"] - 0.1
    for task in tasks.by_name.values():
        task.config.generation_kwargs["by_steps"] = False  # the twin
    prefilled = run_tasks(int8_recall["w8a8"], tasks, limit=48)[0].values.mean().item()
    assert prefilled > 0.95


# --- results --------------------------------------------------------------------------------------

JSONL: list[dict[str, Any]] = [
    {"context": f"The nation of the {i}", "word": "people", "document": "ab"[i % 2]} for i in range(6)
]
GENERIC: dict[str, Any] = {
    "output_type": "loglikelihood",
    "dataset_path": "json",
    "test_split": "test",
    "doc_to_text": "{{context}}",
    "doc_to_target": " {{word}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
PERPLEXITY = GENERIC | {
    "metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}]
}
TOGETHER = GENERIC | {
    "output_type": "multiple_choice",
    "doc_to_target": 1,
    "doc_to_choice": ["people", "union"],
    "metric_list": [{"metric": "f1", "aggregation": "f1", "higher_is_better": True}],
}
ROLLING = GENERIC | {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{context}}",
    "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
}


CHOICES = GENERIC | {
    "output_type": "multiple_choice",
    "doc_to_text": "The nation of the",
    "doc_to_choice": ["people", "union", "law"],
}
LABELS = CHOICES | {"doc_to_target": "{{['people', 'union', 'law'][label]}}"}
OUTSIDE = CHOICES | {"doc_to_target": "{{['nobody', 'union', 'law'][label]}}"}
WINOGRANDE = CHOICES | {  # the text says which context is right, all of which one target follows
    "doc_to_text": "label",
    "doc_to_choice": "{{contexts}}",
    "doc_to_target": "{{ending}}",
}
FEWSHOT = GENERIC | {"num_fewshot": 2, "fewshot_split": "test"}
for i, row in enumerate(JSONL):
    row |= {"label": i % 3, "contexts": [f"The {word} of the {i}" for word in ("nation", "state", "law")]}
    row |= {"ending": "people"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tasks as a user writes them: YAML over a file of JSON lines."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, JSONL)))
    tasks: dict[str, dict[str, Any]] = {
        "mine": GENERIC,
        "rolling": ROLLING,
        "perplexity_alone": PERPLEXITY,
        "together": TOGETHER,
    }
    tasks |= {"labels": LABELS, "outside": OUTSIDE, "winogrande_like": WINOGRANDE, "fewshot": FEWSHOT}
    tasks |= {"other_prompt": GENERIC | {"doc_to_text": "Behold: {{context}}"}}
    tasks |= {"no_data": GENERIC | {"dataset_path": "nobody/has_this"}, "broken": GENERIC | {"output_type": "dance"}}
    for name, config in tasks.items():
        whole = config | {"task": name, "dataset_kwargs": {"data_files": {"test": str(data)}}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(whole))
    return tmp_path


@pytest.mark.parametrize("by", ["name", "file"])
def test_a_users_task_is_run_by_name_or_file(world: Path, folder: Path, by: str) -> None:
    subject = subject_of(str(world / "tiny-model"), dtype="float64")
    tasks = load_tasks(["mine" if by == "name" else str(folder / "mine.yaml")], include_path=folder)
    (found,) = run_tasks(subject, tasks)
    assert (found.task, found.metric, found.higher_is_better) == ("mine", "acc", True)
    assert found.documents.tolist() == [0, 1, 0, 1, 0, 1]
    assert found.weights.tolist() == [1.0] * 6
    assert len(found.log_likelihoods.unique()) == 6
    assert (found.log_likelihoods < 0).all()
    (first_two,) = run_tasks(subject, tasks, limit=2)
    assert torch.allclose(first_two.log_likelihoods, found.log_likelihoods[:2], rtol=1e-9)
    assert first_two.digest != found.digest


def test_a_loss_per_byte_is_nats_over_bytes(world: Path, folder: Path) -> None:
    """Lower is better, each document weighs its bytes."""
    subject = subject_of(str(world / "tiny-model"), dtype="float64")
    (found,) = run_tasks(subject, load_tasks(["rolling"], include_path=folder))
    assert found.unit == "nats/byte"
    assert (found.metric, found.higher_is_better) == ("bits_per_byte", False)
    assert found.weights.tolist() == [len(row["context"].encode()) for row in JSONL]
    assert (found.values > 0).all()
    assert torch.equal(found.values, -found.log_likelihoods)


def test_a_perplexity_is_a_loss_in_nats(world: Path, folder: Path) -> None:
    """The harness keeps a log-likelihood, which is the better the higher, under a name that is the better the lower."""
    subject = subject_of(str(world / "tiny-model"), dtype="float64")
    (found,) = run_tasks(subject, load_tasks(["perplexity_alone"], include_path=folder))
    assert (found.metric, found.unit, found.higher_is_better) == ("perplexity", "nats/document", False)
    assert torch.equal(found.values, -found.log_likelihoods)
    assert (found.values > 0).all()


def test_a_metric_of_all_documents_together_is_refused(world: Path, folder: Path) -> None:
    tasks = load_tasks(["together"], include_path=folder)
    with pytest.raises(BadParameter, match="together has no number for each document: f1"):
        run_tasks(subject_of(str(world / "tiny-model")), tasks)


def test_a_choices_likelihood_is_the_right_ones(world: Path) -> None:
    subject = subject_of(str(world / "tiny-model"), dtype="float64")
    tasks = load_tasks(["prose_continuation"], corpus=world / "corpus")
    (found,) = run_tasks(subject, tasks, limit=5)
    for doc, log_likelihood in zip(
        list(tasks.by_name["prose_continuation"].eval_docs)[:5], found.log_likelihoods, strict=True
    ):
        context = torch.tensor([subject.tokenizer.encode(f"{doc['context']} {doc['choices'][doc['right']]}")])
        n = len(subject.tokenizer.encode(f" {doc['choices'][doc['right']]}"))
        log_probs = torch.log_softmax(subject.model(context)[0][0], -1)[:-1].gather(-1, context[0, 1:, None])
        assert log_likelihood.item() == pytest.approx(log_probs[-n:].sum().item(), rel=1e-9)


def nats(subject: Any, context: str, continuation: str) -> float:
    """By the definition, of one sequence."""
    ids, start = subject.tokenizer.encode(context + continuation), len(subject.tokenizer.encode(context))
    log_probs = torch.log_softmax(subject.model(torch.tensor([ids]))[0][0], -1)
    return sum(log_probs[i - 1, ids[i]].item() for i in range(start, len(ids)))


def test_a_target_may_name_its_choice_by_words(world: Path, folder: Path) -> None:
    subject = subject_of(str(world / "tiny-model"), dtype="float64")
    (found,) = run_tasks(subject, load_tasks(["labels"], include_path=folder))
    of_words = [nats(subject, "The nation of the", f" {word}") for word in ("people", "union", "law")]
    assert found.log_likelihoods.tolist() == pytest.approx(of_words * 2, rel=1e-9)
    assert len(set(of_words)) == 3
    assert found.values.tolist() == [float(i == max(range(3), key=of_words.__getitem__)) for i in (0, 1, 2)] * 2


def test_of_contexts_the_right_one_is_what_the_text_names(world: Path, folder: Path) -> None:
    """Winogrande's shape: one continuation behind one of several contexts."""
    subject = subject_of(str(world / "tiny-model"), dtype="float64")
    (found,) = run_tasks(subject, load_tasks(["winogrande_like"], include_path=folder))
    expected = [nats(subject, row["contexts"][row["label"]], " people") for row in JSONL]
    assert found.log_likelihoods.tolist() == pytest.approx(expected, rel=1e-9)


def test_a_target_that_is_no_choice_has_no_likelihood(world: Path, folder: Path) -> None:
    (found,) = run_tasks(subject_of(str(world / "tiny-model")), load_tasks(["outside"], include_path=folder))
    assert found.log_likelihoods.isnan().tolist() == [True, False, False] * 2
    assert found.values[0] == found.values[3] == 0


def test_every_model_is_shown_the_same_examples(world: Path, folder: Path) -> None:
    """The sampler's stream runs on through a run: two runs of one model, and one of another."""
    subject, tasks = subject_of(str(world / "tiny-model")), load_tasks(["fewshot"], include_path=folder)
    (first,), (second,) = run_tasks(subject, tasks), run_tasks(subject, tasks)
    assert torch.equal(first.log_likelihoods, second.log_likelihoods)
    (other,) = run_tasks(subject_of(str(world / "tiny-model"), dtype="float64"), tasks)
    assert first.digest == second.digest == other.digest
    prompts = {request.args[0] for request in tasks.by_name["fewshot"].instances}
    assert len(prompts) == 6
    assert all(prompt.count("people") == 2 for prompt in prompts)


def test_what_is_asked_is_in_the_digest(world: Path, folder: Path) -> None:
    """The same documents behind another prompt, with another number of examples, behind the start token."""
    subject = subject_of(str(world / "tiny-model"))

    def of(name: str, starts: bool = False) -> str:
        (found,) = run_tasks(replace(subject, starts=starts), load_tasks([name], include_path=folder))
        return found.digest

    assert of("mine") == of("mine")
    assert len({of("mine"), of("other_prompt"), of("fewshot"), of("perplexity_alone"), of("mine", starts=True)}) == 5


DRAWS = """
import random

import datasets
import numpy as np


def drawn(**about):
    rows = [{"context": f"{i} {np.random.rand()}", "word": "people"} for i in range(40)]
    random.shuffle(rows)
    return {"test": datasets.Dataset.from_list(rows)}


def anew(docs):
    return docs.select(random.sample(range(len(docs)), len(docs)))
"""


@pytest.fixture
def drawing(folder: Path) -> Path:
    """A task that draws while it is loaded, and one that draws whenever its documents are read."""
    (folder / "draws.py").write_text(DRAWS)
    config = {k: v for k, v in GENERIC.items() if k != "dataset_path"}
    text = yaml.safe_dump(config) + "custom_dataset: !function draws.drawn\n"
    (folder / "draws_once.yaml").write_text(text + "task: draws_once\n")
    (folder / "draws_anew.yaml").write_text(text + "task: draws_anew\nprocess_docs: !function draws.anew\n")
    return folder


def test_a_task_that_draws_has_the_same_documents_in_every_process(drawing: Path) -> None:
    """Whatever was drawn before, and whichever tasks are loaded with it."""

    def documents(*names: str, seed: int) -> list[Any]:
        random.seed(seed)
        np.random.seed(seed)
        state = random.getstate(), np.random.rand(3).tolist()
        np.random.seed(seed)
        found = list(load_tasks(names, include_path=drawing).by_name["draws_once"].eval_docs)
        assert (random.getstate(), np.random.rand(3).tolist()) == state
        return found

    first = documents("draws_once", seed=1)
    assert first == documents("draws_once", seed=2) == documents("draws_anew", "draws_once", seed=3)


def test_a_task_whose_documents_change_under_its_answers_is_refused(world: Path, drawing: Path) -> None:
    with pytest.raises(BadParameter, match="draws_anew draws its documents anew") as raised:
        run_tasks(subject_of(str(world / "tiny-model")), load_tasks(["draws_anew"], include_path=drawing))
    assert "\n" not in str(raised.value)


def test_data_that_cannot_be_had_are_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*arguments: Any, **options: Any) -> None:
        raise ConnectionError("Couldn't reach 'nobody/has_this' on the Hub\n(LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(BadCorpus, match="the data of the task no_data cannot be had: ConnectionError") as raised:
        load_tasks(["no_data"], include_path=folder)
    assert "quambench list tasks" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_task_that_cannot_be_loaded_is_one_line(folder: Path) -> None:
    with pytest.raises(OutsideFailed, match="the task broken cannot be loaded: ") as raised:
        load_tasks(["broken"], include_path=folder)
    assert "\n" not in str(raised.value)


def test_evidence_of_two_models_is_metrics(world: Path) -> None:
    tasks = load_tasks(["prose_continuation"], corpus=world / "corpus")
    model, corpus = str(world / "tiny-model"), str(world / "corpus")
    of_float = run_tasks(subject_of(model, dtype="float64"), tasks, limit=12)
    int8 = run_tasks(subject_of(model, observer="running_max/w4a4/quick", corpus=corpus), tasks, limit=12)
    evidence = task_evidence(int8, of_float)
    assert torch.equal(evidence["task.prose_continuation.value_float"], of_float[0].values)
    assert not torch.equal(evidence["task.prose_continuation.log_likelihood"], of_float[0].log_likelihoods)
    assert task_metrics(evidence)["task_prose_continuation"].unit == int8[0].unit == "score"
    found = {name: metric.measure(evidence) for name, metric in task_metrics(evidence).items()}
    assert found["task_prose_continuation"].value == int8[0].values.mean()
    with pytest.raises(AssertionError, match="not the same task"):
        task_evidence(int8, run_tasks(subject_of(model, dtype="float64"), tasks, limit=11))


def test_a_limit_below_one_is_one_line(world: Path) -> None:
    with pytest.raises(BadParameter, match="limit must be at least 1"):
        run_tasks(subject_of(str(world / "tiny-model")), load_tasks(["recall_induction_192"]), limit=0)


def test_nobodys_stream_of_chance_is_set(world: Path) -> None:
    """lm_eval.simple_evaluate seeds Python's, NumPy's and torch's for the whole process."""
    before = random.getstate(), torch.random.get_rng_state()
    tasks = load_tasks(["prose_continuation"], corpus=world / "corpus")
    run_tasks(subject_of(str(world / "tiny-model")), tasks, limit=2)
    assert random.getstate() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])


def test_the_tasks_are_all_there_with_their_metric_and_a_word_on_each() -> None:
    assert {t.name for t in offered_tasks()} == set(COUNTS)
    assert all(t.metric.startswith("acc") and t.what.endswith(".") and t.file.is_file() for t in offered_tasks())
