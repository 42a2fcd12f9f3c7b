"""The harness' own model class over ours, registered as "quambench". Importing this module imports the harness."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Self

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from quambench.core.errors import BadParameter
from quambench.core.memory import keep_freed_memory
from quambench.harness import MODEL_NAME
from quambench.harness.scoring import Asked, generate, log_likelihoods
from quambench.harness.subject import Subject, subject_of

BATCH = 16  # default sequences per forward; more at once do not pay on CPUs
MAX_LENGTH = 2048  # tokens that are read; Mamba has no limit, memory has
MAX_WRITTEN = 256  # default tokens, which is the harness' own
GREEDY = ("until", "max_gen_toks", "do_sample", "temperature", "by_steps")  # what a task may say of generation


@register_model(MODEL_NAME)
class QuambenchLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """A Subject as a model of the harness.

    batch_size   sequences per forward: 16 unless given; "auto" is refused, since it would depend on the machine
    max_length   tokens read at most; longer contexts lose their beginning
    others       see subject_of
    """

    def __init__(
        self,
        model: str | Subject,
        batch_size: int | str | None = None,
        max_length: int | str = MAX_LENGTH,
        max_batch_size: int | None = None,  # for the harness' automatic search, which is refused here
        device: str | None = None,
        **of_model: Any,
    ) -> None:
        """Load the model. raises BadParameter, and what subject_of raises"""
        super().__init__()
        self.batch_size = _positive("batch_size", BATCH if batch_size is None else batch_size)
        self.max_length = _positive("max_length", max_length)
        if isinstance(model, Subject) and of_model:
            raise BadParameter(f"a Subject is complete: leave {', '.join(of_model)} out")
        keep_freed_memory()
        self.subject = model if isinstance(model, Subject) else _subject(model, of_model, device)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Self:
        """Make the model as the harness does: options of its command line count where model_args are silent.

        raises BadParameter, and what subject_of raises
        """
        beside = {k: v for k, v in (additional_config or {}).items() if v is not None}
        beside.pop("device", None)  # the harness says cuda:0 by default: only model_args may name a device
        if "model" not in arg_dict:
            raise BadParameter("model_args must name a model, e.g. --model_args model=mamba2-tiny")
        return cls(**(beside | arg_dict))

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Self:
        return cls.create_from_arg_obj(_arguments(arg_string), additional_config)

    # --- what the harness reads of a model ---------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The start token, which also stands where there is no context."""
        return self.subject.tokenizer.start_id

    @property
    def tokenizer_name(self) -> str:
        return self.subject.name

    def get_model_info(self) -> dict[str, object]:
        """Return what the harness' results say of the model."""
        return {"quambench_model": self.subject.name, "quambench_digest": self.subject.digest}

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Refuse --use_cache: the harness keys stored answers by the question alone, whichever model gave them.

        raises BadParameter
        """
        if cache_hook.dbdict is not None:
            raise BadParameter("leave --use_cache out: its stored answers do not say which model gave them")
        super().set_cache_hook(cache_hook)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the token ids of a text, the start token first where the subject's texts start so."""
        ids = self.subject.tokenizer.encode(string)
        starts = self.subject.starts if add_special_tokens is None else add_special_tokens
        return [self.eot_token_id, *ids] if starts else ids

    # --- what the harness asks ----------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        asked = [self._fit(context, continuation) for _, context, continuation in requests]
        answers = log_likelihoods(self.subject.model, asked, self.batch_size)
        return [(a.log_likelihood, a.greedy) for a in answers]

    def _fit(self, context: Sequence[int], continuation: Sequence[int]) -> Asked:
        """Keep the last max_length + 1 tokens, the last of which is never read. raises BadParameter"""
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise BadParameter(f"max_length must be at least {len(continuation)}, a continuation's tokens")
        if not continuation:
            raise BadParameter("a continuation has no token of its own: it must be more than the end of its context")
        return Asked((context or [self.eot_token_id])[-room:], continuation)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return each text's log-likelihood in nats, by windows of max_length; each token is scored once."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owner: list[int] = []
        for row, request in enumerate(requests):
            ids = self.subject.tokenizer.encode(request.args[0])
            cut = get_rolling_token_windows(ids, self.eot_token_id, self.max_length, 1)
            found = [(None, *make_disjoint_window(window)) for window in cut]
            windows += found
            owner += [row] * len(found)
        sums = [0.0] * len(requests)
        for row, (log_likelihood, _) in zip(owner, self._loglikelihood_tokens(windows), strict=True):
            sums[row] += log_likelihood
        return sums

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Write greedily. With by_steps: true in a task's generation_kwargs, the context is decoded token by token."""
        manners = [_manner(request.args[1]) for request in requests]
        alike: dict[_Manner, list[int]] = defaultdict(list)
        for i, manner in enumerate(manners):
            alike[manner].append(i)
        texts = [""] * len(requests)
        for manner, rows in alike.items():
            contexts = [self._context(requests[i].args[0], manner.max_tokens) for i in rows]
            written = generate(
                self.subject.model,
                contexts,
                manner.max_tokens,
                lambda ids, manner=manner: self._is_done(ids, manner),  # type: ignore[misc]
                self.batch_size,
                manner.by_steps,
            )
            for i, ids in zip(rows, written, strict=True):
                texts[i] = self._cut(ids, manner)
        return texts

    def _context(self, text: str, max_tokens: int) -> list[int]:
        """Return the end of a context, as much as leaves room for what will be written. raises BadParameter"""
        room = self.max_length - max_tokens
        if room < 1:
            raise BadParameter(f"max_length must be above max_gen_toks (got {self.max_length} and {max_tokens})")
        return (self.tok_encode(text) or [self.eot_token_id])[-room:]

    def _is_done(self, ids: list[int], manner: _Manner) -> bool:
        if ids[-1] == self.eot_token_id:
            return True
        return bool(manner.until) and (text := self._decode(ids)) != _until(text, manner.until)

    def _cut(self, ids: list[int], manner: _Manner) -> str:
        return _until(self._decode(ids), manner.until)

    def _decode(self, ids: list[int]) -> str:
        return self.subject.tokenizer.decode([i for i in ids if i != self.eot_token_id])


@dataclass(frozen=True, slots=True)
class _Manner:
    """The way in which a request wants to be continued."""

    until: tuple[str, ...]
    max_tokens: int
    by_steps: bool


def _manner(given: Mapping[str, Any]) -> _Manner:
    kwargs = normalize_gen_kwargs(dict(given), MAX_WRITTEN)
    if kwargs["do_sample"]:
        raise BadParameter("generation is greedy: leave do_sample and temperature out")
    if unknown := sorted(set(kwargs) - set(GREEDY)):
        raise BadParameter(f"generation takes {', '.join(GREEDY)} (got {unknown[0]})")
    until = tuple(filter(None, kwargs["until"]))
    return _Manner(until, _positive("max_gen_toks", kwargs["max_gen_toks"]), bool(kwargs.get("by_steps", False)))


def _until(text: str, stops: Sequence[str]) -> str:
    """Return the text up to the first of `stops`, which is left out."""
    for stop in stops:
        text = text.partition(stop)[0]
    return text


def _subject(model: str, of_model: Mapping[str, Any], device: str | None) -> Subject:
    """Return the Subject of model_args as the harness reads them: a word may have become a number, or true or false.

    raises BadParameter, and what subject_of raises
    """
    known = list(signature(subject_of).parameters)
    if unknown := sorted(set(of_model) - set(known)):
        raise BadParameter(f"{MODEL_NAME} has no model argument {unknown[0]!r}; it takes {', '.join(known)}")
    given = {name: str(value) for name, value in of_model.items()}
    starts = given.pop("add_bos_token", "None").lower()
    if starts not in _TRUTH:
        raise BadParameter(f"add_bos_token must be true or false (got {starts!r})")
    return subject_of(str(model), add_bos_token=_TRUTH[starts], device=device or "cpu", **given)


_TRUTH = {"true": True, "false": False, "none": None}


def _positive(name: str, value: int | str) -> int:
    text = str(value)
    if not text.isdecimal() or int(text) < 1:
        raise BadParameter(f"{name} must be a whole number of at least 1 (got {text!r})")
    return int(text)


def _arguments(text: str) -> dict[str, str]:
    """Split "model=a,observer=percentile[alpha=0.9,sigma=0.1]" by name; commas in brackets stay."""
    parts: list[str] = []
    for piece in filter(None, text.split(",")):
        if parts and parts[-1].count("[") > parts[-1].count("]"):
            parts[-1] += f",{piece}"
        else:
            parts.append(piece)
    return {key.strip(): value.strip() for key, _, value in (part.partition("=") for part in parts)}
