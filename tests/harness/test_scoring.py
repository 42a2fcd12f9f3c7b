"""Likelihoods and greedy text against one sequence at a time; padding and batches change nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM
from transformers.models.mamba import modeling_mamba
from transformers.models.mamba2 import modeling_mamba2

from quambench.case import Case
from quambench.core.errors import NonFinite
from quambench.data.corpus import load_corpus
from quambench.harness.scoring import Asked, generate, log_likelihoods
from quambench.models import LanguageModel
from quambench.models.backbone import LayerState
from quambench.models.checkpoint import load_checkpoint
from quambench.run.runner import ModelRun

LENGTHS = ((1, 1), (4, 3), (17, 2), (9, 9), (30, 1), (4, 3), (2, 12))  # of context and continuation


def asked(vocab_size: int = 264) -> list[Asked]:
    generator = torch.Generator().manual_seed(5)

    def draw(n: int) -> list[int]:
        return torch.randint(vocab_size, (n,), generator=generator).tolist()

    return [Asked(draw(context), draw(continuation)) for context, continuation in LENGTHS]


def one_by_one(model: Callable[[Tensor], Any], questions: list[Asked]) -> tuple[Tensor, list[bool]]:
    """The definition: log-softmax at each position, summed over the continuation."""
    sums, greedy = [], []
    for question in questions:
        tokens = torch.tensor([[*question.context, *question.continuation]])
        logits = model(tokens)[0][0, len(question.context) - 1 : -1]
        of_tokens = torch.log_softmax(logits, -1).gather(-1, tokens[0, len(question.context) :, None])
        sums.append(of_tokens.double().sum())
        greedy.append(bool((logits.argmax(-1) == tokens[0, len(question.context) :]).all()))
    return torch.stack(sums), greedy


def sums_of(model: Any, questions: list[Asked], batch_size: int) -> Tensor:
    return torch.tensor([a.log_likelihood for a in log_likelihoods(model, questions, batch_size)], dtype=torch.float64)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_likelihoods_are_those_of_single_sequences(
    float_model: LanguageModel, assert_only_rounding: Callable[..., None], batch_size: int
) -> None:
    def pair(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        model = copy.deepcopy(float_model).to(dtype)
        with torch.inference_mode():
            expected, _ = one_by_one(model, asked())
        return sums_of(model, asked(), batch_size).to(dtype), expected.to(dtype)

    assert_only_rounding(pair)


def test_a_model_that_saw_its_padding_would_be_caught(
    float_model: LanguageModel, assert_only_rounding: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same comparison with a model that looks at the whole row."""
    right = LanguageModel.hidden

    def looks_ahead(self: LanguageModel, tokens: Tensor, *args: Any) -> Any:
        hidden, states = right(self, tokens, *args)
        return hidden + hidden.mean(1, keepdim=True), states

    monkeypatch.setattr(LanguageModel, "hidden", looks_ahead)
    with pytest.raises(AssertionError, match="more than rounding"):
        test_likelihoods_are_those_of_single_sequences(float_model, assert_only_rounding, 3)


def test_an_answer_is_greedy_when_each_token_is_the_likeliest(float_model: LanguageModel) -> None:
    questions = asked()
    contexts = [q.context for q in questions]
    written = generate(float_model, contexts, 3, lambda ids: False, 2)
    told = [Asked(c, w) for c, w in zip(contexts, written, strict=True)]
    assert all(a.greedy for a in log_likelihoods(float_model, told, 3))
    for place in range(3):
        spoilt = [Asked(c, [(t + 1) % 264 if i == place else t for i, t in enumerate(w)]) for c, w in
                  zip(contexts, written, strict=True)]  # fmt: skip
        assert not any(a.greedy for a in log_likelihoods(float_model, spoilt, 3))


def test_logits_that_are_not_finite_are_refused(float_model: LanguageModel) -> None:
    float_model.lm_head.weight.data[3] = float("nan")
    with pytest.raises(NonFinite):
        log_likelihoods(float_model, asked(), 2)
    with pytest.raises(NonFinite):
        generate(float_model, [[1, 2]], 2, lambda ids: False, 1)


def positions_at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Whose logits each call of the head makes."""
    right, seen = LanguageModel.head, []

    def counts(self: LanguageModel, hidden: Tensor, *args: Any) -> Tensor:
        seen.append(hidden.shape[:-1].numel())
        return right(self, hidden, *args)

    monkeypatch.setattr(LanguageModel, "head", counts)
    return seen


def test_logits_of_few_positions_are_in_memory_at_once(
    float_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a piece that ends within a sequence changes nothing but rounding."""
    expected = log_likelihoods(float_model, asked(), 100)
    monkeypatch.setattr("quambench.harness.scoring.AT_ONCE", 4)
    seen = positions_at_once(monkeypatch)
    found = log_likelihoods(float_model, asked(), 100)
    assert max(seen) == 4
    assert sum(seen) == sum(continuation for _, continuation in LENGTHS)
    assert [f.log_likelihood for f in found] == pytest.approx([e.log_likelihood for e in expected], rel=1e-12)
    assert [f.greedy for f in found] == [e.greedy for e in expected]


def test_of_a_context_that_is_written_on_only_the_last_logits_are_made(
    float_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = positions_at_once(monkeypatch)
    generate(float_model, [[1, 2, 3, 4], [5, 6, 7, 8]], 3, lambda ids: False, 2)
    assert seen == [2, 2, 2]


# --- transformers ---------------------------------------------------------------------------------


class _TorchInFloat64:
    """torch, but whoever says float32 gets float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@dataclass
class _Theirs:
    model: Any
    modeling: Any


def theirs(kind: str) -> _Theirs:
    common = {"vocab_size": 264, "hidden_size": 24, "num_hidden_layers": 2, "state_size": 6}
    if kind == "mamba":
        return _Theirs(MambaForCausalLM(MambaConfig(**common)), modeling_mamba)
    config = Mamba2Config(**common, head_dim=4, num_heads=12, n_groups=2, chunk_size=8)
    return _Theirs(Mamba2ForCausalLM(config), modeling_mamba2)


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_likelihoods_are_those_of_transformers(
    kind: str,
    randomize: Callable[..., None],
    assert_only_rounding: Callable[..., None],
    tmp_path: Path,
    tokenizer_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One checkpoint, read by both; theirs a sequence at a time."""
    other = theirs(kind)
    randomize(other.model, seed=9)
    other.model.eval().save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    ours = load_checkpoint(str(tmp_path)).model

    def pair(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(), monkeypatch.context() as patch:
            if dtype == torch.float64:  # transformers casts to float32 inside, even in float64
                patch.setattr(other.modeling, "torch", _TorchInFloat64())
                patch.setattr(Tensor, "float", Tensor.double)
            model = copy.deepcopy(other.model).to(dtype)
            expected, _ = one_by_one(lambda tokens: (model(tokens, use_cache=False).logits,), asked())
        return sums_of(copy.deepcopy(ours).to(dtype), asked(), 3).to(dtype), expected.to(dtype)

    assert_only_rounding(pair)


# --- writing --------------------------------------------------------------------------------------


def anew_each_step(model: Any, context: list[int], n: int) -> list[int]:
    """No state: the whole text is prefilled for each token."""
    ids = list(context)
    with torch.inference_mode():
        for _ in range(n):
            ids.append(int(model(torch.tensor([ids]))[0][0, -1].argmax()))
    return ids[len(context) :]


CONTEXTS = [[1, 2, 3], [200, 7, 9, 11, 13, 17, 3, 4], [5, 6, 7], [42], [3, 2, 1]]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("by_steps", [False, True])
def test_writing_with_a_state_is_writing_anew_each_step(
    float_model: LanguageModel, batch_size: int, by_steps: bool
) -> None:
    """In float64, where decoding is prefill but for rounding far below the gaps between a random model's logits."""
    expected = [anew_each_step(float_model, c, 12) for c in CONTEXTS]
    assert len({tuple(e) for e in expected}) > 1
    assert generate(float_model, CONTEXTS, 12, lambda ids: False, batch_size, by_steps) == expected


def test_a_state_that_is_not_carried_would_be_caught(
    float_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = LanguageModel.forward

    def forgets(self: LanguageModel, tokens: Tensor, state: Any = None, *args: Any) -> Any:
        zeros = state and [LayerState(layer.conv * 0, layer.ssm * 0) for layer in state]
        return right(self, tokens, zeros, *args)

    expected = [anew_each_step(float_model, c, 12) for c in CONTEXTS]
    monkeypatch.setattr(LanguageModel, "forward", forgets)
    assert generate(float_model, CONTEXTS, 12, lambda ids: False, 8) != expected


def test_each_row_stops_when_it_is_done(float_model: LanguageModel) -> None:
    """Some rows of a batch leave early; the others go on as if alone."""
    whole = generate(float_model, CONTEXTS, 12, lambda ids: False, 8)
    stops = {ids[3] for ids in whole[:2]}
    short = generate(float_model, CONTEXTS, 12, lambda ids: ids[-1] in stops, 8)
    cut = [ids[: next((i + 1 for i, t in enumerate(ids) if t in stops), 12)] for ids in whole]
    assert short == cut
    assert len({len(ids) for ids in short}) > 1


# --- INT8 -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def int8(world: Path) -> Any:
    checkpoint = load_checkpoint(str(world / "tiny-model"))
    case = Case.parse(checkpoint.name, "running_max/quick")
    return ModelRun(checkpoint, load_corpus(world / "corpus"), [case]).quantized(case)


def test_a_batch_changes_an_int8_model_no_more_than_rounding_may(int8: Any) -> None:
    """Its rows meet in float products alone (the scan's, the norm's sums), whose last bit may take a value across a
    rounding tie: one step at one site. A batch of one against a batch of all: most answers equal to the last bits of
    float32, and none further off than a thousandth of a nat, where padding that is seen costs nats."""
    questions = asked(300)
    apart = (sums_of(int8, questions, 1) - sums_of(int8, questions, 100)).abs()
    size = sums_of(int8, questions, 1).abs()
    assert apart.median() <= 16 * torch.finfo(torch.float32).eps * size.max()
    assert apart.max() <= 1e-3


def test_an_int8_model_writes_through_its_int8_state(int8: Any) -> None:
    """Prefill, then steps: what evaluation.decoding measures. Twin: prefilled anew, the state is never read."""
    context = list(range(40, 72))
    with torch.inference_mode():
        logits, state = int8(torch.tensor([context]))
        expected = []
        for _ in range(24):
            expected.append(int(logits[0, -1].argmax()))
            logits, state = int8(torch.tensor([[expected[-1]]]), state)
    assert generate(int8, [context], 24, lambda ids: False, 4) == [expected]
