"""What the harness asks and is answered: boundaries, empty and long contexts, windows, stops, arguments, caches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CachingLM
from lm_eval.api.registry import get_model

from quambench.calibration.scales import Calibration
from quambench.case import Case, Protocol
from quambench.core.errors import BadArtefact, BadParameter, QuambenchError, UnknownName
from quambench.data.corpus import load_corpus
from quambench.harness.adapter import QuambenchLM, _arguments, _Manner
from quambench.harness.scoring import Asked, log_likelihoods
from quambench.harness.subject import Subject, subject_of
from quambench.models.checkpoint import load_checkpoint
from quambench.run.runner import ModelRun

TEXT = "We the people, in order to form a more perfect union, establish justice."


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=a, idx=0) for a in arguments]


def likelihood(lm: LM, context: str, continuation: str) -> tuple[float, bool]:
    (answer,) = lm.loglikelihood(requests("loglikelihood", (context, continuation)), disable_tqdm=True)
    return answer


def exact(subject: Subject, context: list[int], continuation: list[int]) -> float:
    (answer,) = log_likelihoods(subject.model, [Asked(context, continuation)], 1)
    return answer.log_likelihood


def almost(value: float) -> Any:
    """Another batch in float64: far above rounding, far below what one token costs."""
    return pytest.approx(value, rel=1e-9)


@pytest.fixture
def lm(subject: Subject) -> QuambenchLM:
    return QuambenchLM(subject, batch_size=3)


def test_the_harness_knows_it_by_name() -> None:
    assert get_model("quambench") is QuambenchLM


# --- likelihoods ----------------------------------------------------------------------------------


def test_the_continuation_is_scored_behind_its_context(lm: QuambenchLM, subject: Subject) -> None:
    encode = subject.tokenizer.encode
    assert likelihood(lm, "We the", " people")[0] == almost(exact(subject, encode("We the"), encode(" people")))


def test_a_space_that_ends_the_context_belongs_to_the_word(lm: QuambenchLM) -> None:
    assert likelihood(lm, "We the ", "people") == likelihood(lm, "We the", " people")


def test_nothing_is_lost_or_added_where_context_and_continuation_meet(tokenizer_file: Path, world: Path) -> None:
    """For a tokenizer that merges: both parts are the whole text's tokens, cut where the context ends."""
    checkpoint = load_checkpoint(str(world / "tiny-model"))
    lm = QuambenchLM(Subject(checkpoint.model, checkpoint.tokenizer, "m", "", starts=False))
    text = (world / "corpus" / "0.txt").read_text()

    @settings(derandomize=True, deadline=None, max_examples=60)
    @given(st.integers(0, 400), st.integers(2, 80), st.integers(2, 80))
    def check(start: int, middle: int, end: int) -> None:
        words = text.split()[start % 300 :]
        context, continuation = " ".join(words[:middle]), " " + " ".join(words[middle : middle + end])
        if not continuation.strip():
            return
        parts = lm._encode_pair(context, continuation)
        assert parts[0] + parts[1] == checkpoint.tokenizer.encode(context + continuation)
        assert checkpoint.tokenizer.decode(parts[1]) == continuation

    check()


def test_an_empty_context_is_the_start_token(lm: QuambenchLM, subject: Subject) -> None:
    start = subject.tokenizer.start_id
    expected = exact(subject, [start], subject.tokenizer.encode("people"))
    assert likelihood(lm, "", "people")[0] == almost(expected)


def test_texts_start_with_the_start_token_where_the_subject_says_so(subject: Subject) -> None:
    lm = QuambenchLM(replace(subject, starts=True))
    start, encode = subject.tokenizer.start_id, subject.tokenizer.encode
    expected = exact(subject, [start, *encode("We the")], encode(" people"))
    assert likelihood(lm, "We the", " people")[0] == almost(expected)
    assert expected != pytest.approx(exact(subject, encode("We the"), encode(" people")), rel=1e-3)
    assert likelihood(lm, "", "people")[0] == almost(exact(subject, [start], encode("people")))


def test_a_long_context_loses_its_beginning(subject: Subject) -> None:
    lm = QuambenchLM(subject, max_length=10)
    context, word = subject.tokenizer.encode(TEXT), subject.tokenizer.encode(" Amen")
    expected = exact(subject, context[-(10 + 1 - len(word)) :], word)
    assert likelihood(lm, TEXT, " Amen")[0] == almost(expected)
    assert expected != pytest.approx(exact(subject, context, word), rel=1e-6)


def test_a_continuation_longer_than_what_is_read_is_refused(subject: Subject) -> None:
    lm = QuambenchLM(subject, max_length=10)
    likelihood(lm, "a", "b" * 10)
    with pytest.raises(BadParameter, match="max_length must be at least 11"):
        likelihood(lm, "a", "b" * 11)


def test_a_continuation_without_a_token_is_refused(lm: QuambenchLM) -> None:
    with pytest.raises(BadParameter, match="no token of its own"):
        likelihood(lm, "We the", "")


def test_greedy_is_what_the_model_writes(lm: QuambenchLM) -> None:
    ids = [7, 200, 31]  # ids, since a random model's bytes need not spell text
    likeliest = _write(lm, ids, 3)
    other = [likeliest[0], (likeliest[1] + 1) % 264, likeliest[2]]
    answers = lm._loglikelihood_tokens([(None, ids, likeliest), (None, ids, other)])
    assert [greedy for _, greedy in answers] == [True, False]


def _write(lm: QuambenchLM, context: list[int], n: int) -> list[int]:
    ids = list(context)
    for _ in range(n):
        with torch.inference_mode():
            ids.append(int(lm.subject.model(torch.tensor([ids]))[0][0, -1].argmax()))
    return ids[len(context) :]


def test_answers_come_in_the_order_of_the_questions_whatever_the_batch(subject: Subject) -> None:
    asked = [(TEXT[:n], TEXT[n : n + 1 + n % 5]) for n in range(1, 40)]
    expected = [likelihood(QuambenchLM(subject, batch_size=1), *a) for a in asked]
    for batch_size in (1, 2, 7, 100):
        lm = QuambenchLM(subject, batch_size=batch_size)
        found = lm.loglikelihood(requests("loglikelihood", *asked), disable_tqdm=True)
        assert [f[0] for f in found] == almost([e[0] for e in expected])
        assert [f[1] for f in found] == [e[1] for e in expected]


# --- rolling --------------------------------------------------------------------------------------


def test_rolling_scores_each_token_once_by_windows(subject: Subject) -> None:
    """The harness' own example: ten tokens, four read at once. The last window keeps its full context."""
    lm = QuambenchLM(subject, max_length=4)
    text = "0123456789"
    ids, start = subject.tokenizer.encode(text), subject.tokenizer.start_id
    assert len(ids) == 10
    by_hand = (
        exact(subject, [start], ids[0:4]) + exact(subject, ids[3:4], ids[4:8]) + exact(subject, ids[5:8], ids[8:10])
    )
    assert lm.loglikelihood_rolling(requests("loglikelihood_rolling", (text,)), disable_tqdm=True) == [almost(by_hand)]


def test_rolling_over_a_text_that_fits_is_its_likelihood(lm: QuambenchLM, subject: Subject) -> None:
    ids = subject.tokenizer.encode(TEXT)
    found = lm.loglikelihood_rolling(requests("loglikelihood_rolling", (TEXT,), ("",), (TEXT[:9],)))
    assert found[0] == almost(exact(subject, [subject.tokenizer.start_id], ids))
    assert found[1] == 0
    assert found[2] == almost(exact(subject, [subject.tokenizer.start_id], ids[:9]))


# --- writing --------------------------------------------------------------------------------------


def written(lm: LM, context: str, **kwargs: Any) -> str:
    (text,) = lm.generate_until(requests("generate_until", (context, kwargs)), disable_tqdm=True)
    return text


@pytest.fixture
def talker(world: Path) -> QuambenchLM:
    """A model whose tokens are text, and whose text varies."""
    return QuambenchLM(subject_of(str(world / "tiny-model"), dtype="float64"))


def test_writing_stops_at_the_number_of_tokens(talker: QuambenchLM) -> None:
    start = talker.tok_encode("The nation of")
    for n in (1, 7):
        ids = _write(talker, start, n)
        assert written(talker, "The nation of", until=[], max_gen_toks=n) == talker.subject.tokenizer.decode(ids)


def test_writing_stops_before_a_stop(talker: QuambenchLM) -> None:
    whole = written(talker, "The nation of", until=[], max_gen_toks=24)
    stop = whole[9:12]
    assert written(talker, "The nation of", until=[stop], max_gen_toks=24) == whole[: whole.index(stop)]
    assert written(talker, "The nation of", until=stop, max_gen_toks=24) == whole[: whole.index(stop)]
    assert written(talker, "The nation of", until=["", "\0"], max_gen_toks=24) == whole


def test_the_start_token_ends_a_text(talker: QuambenchLM, monkeypatch: pytest.MonkeyPatch) -> None:
    end = talker.eot_token_id
    monkeypatch.setattr("quambench.harness.adapter.generate", lambda *a: [[70, 71, end]])
    assert written(talker, "x", until=[]) == talker.subject.tokenizer.decode([70, 71])
    manner = _Manner((), 9, False)
    assert talker._is_done([70, end], manner)
    assert not talker._is_done([70, 71], manner)


def test_writing_reads_the_end_of_a_long_context(world: Path) -> None:
    subject = subject_of(str(world / "tiny-model"), dtype="float64")
    short = QuambenchLM(subject, max_length=20)
    text = (world / "corpus" / "0.txt").read_text()[:400]
    end = subject.tokenizer.encode(text)[-(20 - 6) :]
    assert written(short, text, until=[], max_gen_toks=6) == subject.tokenizer.decode(_write(short, end, 6))
    with pytest.raises(BadParameter, match="max_length must be above max_gen_toks"):
        written(short, text, until=[], max_gen_toks=20)


@pytest.mark.parametrize("kwargs", [{"do_sample": True, "temperature": 0.7}, {"temperature": 0.7}])
def test_sampling_is_refused(talker: QuambenchLM, kwargs: dict[str, Any]) -> None:
    with pytest.raises(BadParameter, match="generation is greedy"):
        written(talker, "The", until=[], **kwargs)


def test_what_generation_does_not_know_is_refused(talker: QuambenchLM) -> None:
    with pytest.raises(BadParameter, match="got num_beams"):
        written(talker, "The", until=[], num_beams=4)


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ("batch_size=4", BadParameter, "must name a model"),
        ("model=mamba2-tin", UnknownName, "Did you mean 'mamba2-tiny'"),
        ("model=mamba2-tiny,batch_size=auto", BadParameter, "batch_size must be a whole number"),
        ("model=mamba2-tiny,batch_size=0", BadParameter, "batch_size"),
        ("model=mamba2-tiny,max_length=-3", BadParameter, "max_length"),
        ("model=mamba2-tiny,pretrained=x", BadParameter, "no model argument 'pretrained'"),
        ("model=mamba2-tiny,dtype=int8", BadParameter, "dtype must be one of float32, bfloat16, float16, float64 (got"),
        ("model=mamba2-tiny,device=tpu", BadParameter, "device must be cpu, cuda or cuda:N"),
        ("model=mamba2-tiny,add_bos_token=maybe", BadParameter, "true or false"),
        ("model=mamba2-tiny,precision=w8a4", BadParameter, "precision needs an observer"),
        ("model=mamba2-tiny,observer=mse,calibration=x", BadParameter, "not both"),
        ("model=mamba2-tiny,observer=mse,dtype=float64", BadParameter, "dtype is the float model's"),
        ("model=mamba2-tiny,observer=mse[bins=3,sigma=1]", BadParameter, "no parameter"),
        ("model=mamba2-tiny,calibration=nowhere", BadArtefact, "calibration.json is missing"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_model_args_is_one_line(arguments: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error) as raised:
        QuambenchLM.create_from_arg_string(arguments)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_one_line(device: str) -> None:
    with pytest.raises(BadParameter, match=f"there is no device {device}: .*; use cpu") as raised:
        QuambenchLM.create_from_arg_string(f"model=mamba2-tiny,device={device}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_narrow_float_model_answers_within_its_formats_error(world: Path, dtype: str) -> None:
    """Roundings of either sign cancel for the most part, so that a logit is off by an eps or two of the largest, and a
    likelihood by as much for each of its tokens; but narrow it is, and not the float64 model under another name."""
    wide, narrow = (
        QuambenchLM.create_from_arg_string(f"model={world / 'tiny-model'},dtype={name},device=cpu")
        for name in ("float64", dtype)
    )
    exactly, found = likelihood(wide, *ASKED)[0], likelihood(narrow, *ASKED)[0]
    logits = wide.subject.model(torch.tensor([wide.tok_encode("".join(ASKED))]))[0]
    n_tokens = len(wide.tok_encode(ASKED[1]))
    allowed = 2 * torch.finfo(getattr(torch, dtype)).eps * float(logits.abs().max()) * n_tokens
    assert 0 < abs(found - exactly) <= allowed


def test_arguments_keep_their_brackets() -> None:
    spec = "percentile[alpha=0.9995,sigma=0.01]"
    assert _arguments(f"model=m,observer={spec},grouping=channel") == {
        "model": "m", "observer": spec, "grouping": "channel",
    }  # fmt: skip


def test_the_command_lines_batch_size_counts_where_model_args_are_silent(world: Path) -> None:
    """It says 1 and cuda:0 where nobody said anything."""
    model, beside = str(world / "tiny-model"), {"batch_size": 1, "max_batch_size": None, "device": "cuda:0"}
    assert QuambenchLM.create_from_arg_obj({"model": model}, beside).batch_size == 1
    assert QuambenchLM.create_from_arg_obj({"model": model, "batch_size": 5}, beside).batch_size == 5
    assert QuambenchLM.create_from_arg_string(f"model={model}", {"batch_size": "7"}).batch_size == 7


def test_bundled_models_alone_start_their_texts() -> None:
    assert subject_of("mamba2-recall").starts
    assert not subject_of("mamba2-recall", add_bos_token=False).starts


@pytest.fixture(scope="module")
def scales(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = load_checkpoint(str(world / "tiny-model"))
    case = Case.parse(checkpoint.name, "running_max", Protocol(quality_windows=1))
    folder = tmp_path_factory.mktemp("scales")
    calibration: Calibration = ModelRun(checkpoint, load_corpus(world / "corpus"), [case]).calibration(case)
    calibration.save(folder)
    return folder


def test_saved_scales_and_calibrating_on_the_spot_are_one_model(world: Path, scales: Path) -> None:
    model, corpus = str(world / "tiny-model"), str(world / "corpus")
    saved = QuambenchLM(subject_of(model, calibration=str(scales)))
    made = QuambenchLM(subject_of(model, observer="running_max", corpus=corpus))
    parts = QuambenchLM(subject_of(model, observer="running_max", grouping="1x1", precision="w8a8", corpus=corpus))
    coarse = QuambenchLM(subject_of(model, observer="running_max", precision="w4a4", corpus=corpus))
    plain = QuambenchLM(subject_of(model))
    asked = ("The nation of the", " people")
    assert likelihood(saved, *asked) == likelihood(made, *asked) == likelihood(parts, *asked)
    assert len({likelihood(m, *asked)[0] for m in (saved, coarse, plain)}) == 3
    digests = [m.get_model_info()["quambench_digest"] for m in (saved, made, parts, coarse, plain)]
    assert digests[0] == digests[1] == digests[2]
    assert len(set(digests)) == 3


def test_the_digest_is_of_all_that_decides_the_answers(world: Path, tmp_path: Path) -> None:
    """Beside the model: how text becomes tokens, and whether the start token stands first."""
    model = world / "tiny-model"
    shutil.copytree(model, tmp_path / "tiny-model")
    spelling = json.loads((model / "tokenizer.json").read_text())
    spelling["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "tiny-model" / "tokenizer.json").write_text(json.dumps(spelling))
    ways = [(model, False), (model, True), (tmp_path / "tiny-model", False)]
    for more in ({}, {"observer": "running_max/quick", "corpus": str(world / "corpus")}):
        digests = [subject_of(str(m), add_bos_token=starts, **more).digest for m, starts in ways]
        assert len(set(digests)) == 3
    assert subject_of(str(model)).digest == subject_of(str(model)).digest


# --- no answers of another model ------------------------------------------------------------------


class Trusting(QuambenchLM):
    """As any model class of the harness is: it lets answers be stored."""

    def set_cache_hook(self, cache_hook: Any) -> None:
        LM.set_cache_hook(self, cache_hook)


@pytest.fixture
def two(world: Path, scales: Path) -> Callable[[type[QuambenchLM]], tuple[QuambenchLM, QuambenchLM]]:
    model = str(world / "tiny-model")

    def make(kind: type[QuambenchLM]) -> tuple[QuambenchLM, QuambenchLM]:
        return kind(subject_of(model)), kind(subject_of(model, calibration=str(scales)))

    return make


ASKED = ("The nation of the", " people")


def test_the_harness_would_give_an_int8_model_the_float_ones_answers(two: Any, tmp_path: Path) -> None:
    """Why stored answers are refused: the key is the question alone."""
    of_float, int8 = two(Trusting)
    path = str(tmp_path / "answers.db")
    through = [CachingLM(m, path).loglikelihood(requests("loglikelihood", ASKED))[0] for m in (of_float, int8)]
    assert through[0] == through[1] == likelihood(of_float, *ASKED)
    assert through[1] != likelihood(int8, *ASKED)


def test_stored_answers_are_refused(two: Any, tmp_path: Path) -> None:
    for model in two(QuambenchLM):
        with pytest.raises(BadParameter, match="leave --use_cache out") as raised:
            CachingLM(model, str(tmp_path / "answers.db"))
        assert "\n" not in str(raised.value)
    assert isinstance(raised.value, QuambenchError)


def test_answers_stored_before_are_not_read(two: Any, tmp_path: Path) -> None:
    """Even where another class' answers lie there already, through the harness' own front door."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    of_float, int8 = two(Trusting)
    path = str(tmp_path / "answers")
    CachingLM(of_float, path + "_rank0.db").loglikelihood(requests("loglikelihood", ASKED))
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "data.jsonl").write_text(json.dumps({"context": ASKED[0], "word": ASKED[1]}))
    with pytest.raises(BadParameter, match="leave --use_cache out"):
        simple_evaluate(
            model=QuambenchLM(int8.subject),
            tasks=["anything"],
            use_cache=path,
            task_manager=TaskManager(include_path=str(tmp_path / "t"), include_defaults=False),
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
        )
