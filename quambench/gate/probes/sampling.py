"""Probes of what a model is calibrated and judged on: tokens, parts of a corpus, windows, items, made sequences.

A written-out corpus of a few hundred words and a tokenizer of ten merges stand in for the pinned ones, so
that an answer can be read. All answers are integers and words, but for the chance of guessing a word.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import resources
from types import SimpleNamespace
from typing import Any, cast

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from quambench import case as protocols
from quambench.case import Case, Protocol
from quambench.core.errors import BadCorpus, BadParameter
from quambench.core.scratch import scratch
from quambench.data import choices, corpus, recall, tasks, windows
from quambench.data import tokenizer as tokenizing
from quambench.data.choices import Choice
from quambench.data.corpus import Document
from quambench.data.recall import RecallSequences
from quambench.data.tasks import Passage
from quambench.data.tokenizer import Tokenizer
from quambench.data.windows import Windows
from quambench.evaluation.data import EvalData
from quambench.gate.probes.base import Answer, Probe
from quambench.run import runner

# Each ends in a word that others have within; a name, a quotation, marks of more than one byte.
SENTENCES = (
    "The union of these people stands because every state and every people of the union guards its peace.",
    "No treaty was ever made without some trade, and no trade was ever free without a treaty.",
    "Congress asked that the peace be kept by the people of each state who hold the land.",
    "They said of the land: “it belongs to all who keep the peace, to Congress and to the state.”",
    "In the café of the town the people spoke — as people do — of nothing but the coming trade.",
    "Let the state keep its word, and let the people of the town keep theirs in every union!",
    "What does the treaty ask of Congress, if not that the union of people be held in peace?",
    "A town may hold its land (so the treaty says) while the trade of others grows within the town.",
    "It is small.",
    "Of all things that the state can give to its people and to their trade the first is land.",
)
# What each merge makes is a token after the 256 bytes'; the start token stands last.
MERGES = (("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "o"), ("Ġo", "f"), ("p", "e"), ("a", "n"), ("Ġ", "an"),
          ("Ã", "©"), ("Ġ", "t"))  # fmt: skip
SIZES = (13, 5, 21, 9)  # sentences of each document
LENGTH, COUNTS = 24, (1, 3, 7, 1000)  # tokens of a window; windows asked for, the last more than there are
RUNGS = {"associative": 4, "induction": 16, "selective_copy": 4}
PROTOCOL = Protocol(
    calib_windows=5, calib_length=40, quality_windows=7, quality_length=24, decode_windows=4, decode_prefix=3,
    decode_steps=6, error_windows=3, error_length=16, max_items=5, recall_sequences=3, long_windows=1,
)  # fmt: skip


def probes() -> Iterator[Probe]:
    """In order of dependence."""
    yield Probe("sampling/tokenizer", lambda _: _tokens())
    yield Probe("sampling/tokenizer/words", lambda _: _words())
    yield Probe("sampling/corpus", lambda _: _parts())
    yield Probe("sampling/windows/full", lambda _: _full())
    yield Probe("sampling/windows/spread", lambda _: _spread())
    yield Probe("sampling/passages", lambda _: _passages())
    yield Probe("sampling/items", lambda _: _items())
    yield Probe("sampling/choices", lambda _: _choices())
    for task in recall.TASKS:
        yield Probe(f"sampling/recall/{task}", lambda _, t=task: _made(t))  # type: ignore[misc]
    yield Probe("sampling/windows/sequences", lambda _: _sequences())
    yield Probe("sampling/recall/mixed", lambda _: _mixed())
    yield Probe("sampling/recall/long", lambda _: _long())
    yield Probe("sampling/refused", lambda _: _refused())
    for kind in ("prose", "recall"):
        yield Probe(f"sampling/{kind}", lambda _, k=kind: _judged_on(k))  # type: ignore[misc]
    yield Probe("sampling/second_look", lambda _: _rest())


def text_tokenizer() -> Tokenizer:
    """Byte-level BPE, written out: its start token is not 0, and a token may spell several bytes or half a letter."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(m) for m in MERGES), tokenizing.END_OF_TEXT]
    inner = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, list(MERGES)))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([tokenizing.END_OF_TEXT])
    inner.enable_truncation(7)  # as a tokenizer.json may ask for, of texts of any length
    inner.enable_padding(length=11)
    return tokenizing.Tokenizer(inner)


def texts() -> list[str]:
    """Of each document: sentences by a formula, each document's in another order."""
    return [
        " ".join(SENTENCES[(7 * d + (3 if d % 2 else 7) * j) % len(SENTENCES)] for j in range(n))
        for d, n in enumerate(SIZES)
    ]


def documents() -> list[Document]:
    return [Document.of(f"d{i}", text.encode()) for i, text in enumerate(texts())]


def _tokens() -> Answer:
    """Of a text with letters of two and three bytes, with one that spells the start token, and of none."""
    made = text_tokenizer()
    told = SENTENCES[4] + f"  the\n{tokenizing.END_OF_TEXT} 🙂"
    ids = made.encode(told)
    return {
        "ids": torch.tensor(ids),
        "text": [made.decode(ids), made.decode(ids[:9])],
        "of no text": torch.tensor(made.encode(""), dtype=torch.int64),
        "bytes of the last tokens": made.byte_lengths()[-len(MERGES) - 2 :],
        "bytes of all": made.byte_lengths().sum(),
        "bytes of the text": made.byte_lengths()[torch.tensor(ids)].sum(),
        "start, vocabulary": torch.tensor([made.start_id, made.vocab_size]),
    }


def _words() -> Answer:
    """The recall tasks' own language."""
    made = recall.tokenizer()
    return {
        "ids": torch.tensor(made.encode("k0 v0 <ask> k61 v61 <blank> <trigger> other")),
        "start, vocabulary": torch.tensor([made.start_id, made.vocab_size]),
    }


def _parts() -> Answer:
    """Which document is in which part, of a folder and of a .jsonl with texts that stand twice or are empty."""
    answer: dict[str, Tensor | list[str]] = {}
    lines = [f"{i} " + "word " * (5 + 11 * i % 17) for i in range(11)]
    with scratch() as folder:
        at = folder / "texts"
        at.mkdir()
        for i, text in enumerate([*lines, lines[3], "  \n"]):
            (at / f"{chr(ord('a') + i * 5 % 13)}.txt").write_text(text, encoding="utf-8")
        file = at.with_suffix(".jsonl")
        file.write_text("\n".join(json.dumps({"text": text}) for text in [*lines, "", lines[7]]), encoding="utf-8")
        for path in (at, file):
            found = corpus.load_corpus(path)
            for part in found.parts:
                answer[f"{path.name}, {part}"] = [f"{d.name}: {d.digest[:8]}" for d in found.part(part)]
            answer[f"{path.name}, digest"] = [found.digest]
    pinned = json.loads(resources.files(corpus.__package__).joinpath("sotu_split.json").read_text(encoding="utf-8"))
    for part in corpus.PARTS:
        names = pinned["parts"][part]
        told = hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()
        answer[f"pinned, {part}"] = [f"{len(names)} documents", told]
    return answer


def _full() -> Answer:
    made, tokenizer = documents(), text_tokenizer()
    return {**_cut("", windows.full_windows(made[1:2], tokenizer, LENGTH)),
            "documents": windows.full_windows(made, tokenizer, LENGTH).documents,
            "digest": [windows.full_windows(made, tokenizer, LENGTH).digest]}  # fmt: skip


def _spread() -> Answer:
    """So many windows, all of them, and as many as one document alone has."""
    made, tokenizer = documents(), text_tokenizer()
    answer: dict[str, Tensor | list[str]] = {}
    for count in COUNTS:
        found = windows.spread_windows(made, tokenizer, LENGTH, count)
        first = found.targets[:, :6]  # enough to know the place
        answer |= {f"{count}, start": first, f"{count}, documents": found.documents,
                   f"{count}, bytes": torch.tensor(found.n_bytes), f"{count}, digest": [found.digest]}  # fmt: skip
    return answer | _cut("3, ", windows.spread_windows(made, tokenizer, LENGTH, 3))


def _cut(prefix: str, found: Windows) -> dict[str, Tensor | list[str]]:
    return {
        f"{prefix}inputs": found.inputs,
        f"{prefix}targets": found.targets,
        f"{prefix}documents": found.documents,
        f"{prefix}names": list(found.names),
        f"{prefix}bytes": torch.tensor(found.n_bytes),
    }


def _passages() -> Answer:
    """Sentences; last words with the chance of guessing them, and those without any."""
    text = texts()[2]
    return {
        "sentences": tasks.sentences("One.  Two (so)!\n“Three?” Four… five.\tSix"),
        "passages": [_of(p) for p in tasks.passages(text)],
        "endings": [_of(p) for p in tasks.endings(texts()[1])],
        "chances": torch.tensor([p.chance for p in tasks.passages(text)], dtype=torch.float64),
    }


def _of(passage: Passage) -> str:
    return f"{passage.context[:24]} ... {passage.context[-24:]} | {passage.word}"


def _items() -> Answer:
    made, tokenizer = documents(), text_tokenizer()
    answer: dict[str, Tensor | list[str]] = {}
    for count in (None, 5):
        items = tasks.last_word_items(made, tokenizer, count)
        name = f"{count or 'all'}, "
        answer |= {
            f"{name}documents": items.documents,
            f"{name}names": list(items.names),
            f"{name}chance": items.chance,
            f"{name}lengths": (items.inputs != tokenizer.start_id).sum(1),
            f"{name}where asked": (items.targets >= 0).nonzero(),
            f"{name}asked": items.targets[items.targets >= 0],
            f"{name}digest": [items.digest],
        }
    return answer | {"the first's inputs": items.inputs[0]}


def _choices() -> Answer:
    made = documents()
    return {"cloze": [_asked(c) for c in choices.cloze(made)],
            "continuations": [_asked(c) for c in choices.continuations(made)],
            "digest": [choices.digest(choices.cloze(made)), choices.digest(choices.continuations(made))]}  # fmt: skip


def _asked(item: Choice) -> str:
    shown = " / ".join(choice[:16] for choice in item.choices)
    return f"{item.document}: {item.context[-16:]} | {shown} | {item.right}"


def _made(task: str) -> Answer:
    """Two rungs; the parts and the seeds draw from streams of their own."""
    easiest, second = recall.LADDERS[task][:2]
    found = recall.sequences(task, easiest, 3, "test")
    others = {
        "next rung": recall.sequences(task, second, 3, "test"),
        "another seed": recall.sequences(task, easiest, 3, "test", seed=1),
        **{part: recall.sequences(task, easiest, 3, part) for part in ("train", "validation", "calibration")},
    }
    return {
        "inputs": found.inputs,
        "targets": found.targets,
        "ladder": torch.tensor(recall.LADDERS[task]),
        "digests": [f"{name}: {_digest(one)}" for name, one in others.items()],
    }


def _digest(made: RecallSequences) -> str:
    return hashlib.sha256((made.digest + str(made.tokens.tolist())).encode()).hexdigest()[:16]


def _sequences() -> Answer:
    return _cut("", windows.sequence_windows(recall.sequences("associative", 4, 2, "test")))


def _mixed() -> Answer:
    return {"calibration": recall.mixed_sequences(RUNGS, 4, 40, "calibration"),
            "train": recall.mixed_sequences(RUNGS, 2, 50, "train")}  # fmt: skip


def _long() -> Answer:
    found = recall.long_sequences(2)
    return {"shape": torch.tensor(found.shape), "first": found[:, :30], "last": found[:, -30:], "sum": found.sum(1),
            "shorter": torch.tensor(recall.long_sequences(1, times=2).shape)}  # fmt: skip


def _refused() -> Answer:
    """What no window, sequence or part can be made of."""
    made, tokenizer = documents(), text_tokenizer()
    calls: dict[str, Callable[[], object]] = {
        "no window": lambda: windows.spread_windows(made, tokenizer, LENGTH, 0),
        "no token": lambda: windows.full_windows(made, tokenizer, 0),
        "no text": lambda: windows.full_windows([Document.of("empty", b"")], tokenizer, LENGTH),
        "windows too long": lambda: windows.spread_windows(made, tokenizer, 10_000, 1),
        "not UTF-8": lambda: Document.of("latin", "caf\u00e9".encode("latin-1")),
        "no such part": lambda: corpus.Corpus("probe", {"test": tuple(made)}).part("calibration"),
        "no such rung": lambda: recall.sequences("induction", 0, 1, "test"),
        "a rung too high": lambda: recall.sequences("induction", 193, 1, "test"),
        "no mixed sequence": lambda: recall.mixed_sequences(RUNGS, 0, 10, "train"),
    }
    return {"said": [f"{name}: {_said(call)}" for name, call in calls.items()]}


def _said(call: Callable[[], object]) -> str:
    try:
        call()
    except (BadCorpus, BadParameter) as error:
        return type(error).__name__
    return "taken"


def _judged_on(kind: str) -> Answer:
    """What a case of a prose or a recall model is calibrated and judged on: the parts, the counts, the lengths."""
    made = documents()
    parts = {"calibration": tuple(made[:1]), "validation": tuple(made[1:2]), "test": tuple(made[2:])}
    tokenizer = text_tokenizer() if kind == "prose" else recall.tokenizer()
    checkpoint = SimpleNamespace(
        name="probe", digest="probe", tokenizer=tokenizer, recall=RUNGS if kind == "recall" else {}
    )
    case = Case.parse("probe", "percentile", PROTOCOL)
    run = runner.ModelRun(cast(Any, checkpoint), corpus.Corpus("probe", cast(Any, parts)), [case])
    return {"calibration": run.calibration_sequences, **_data(run.data)}


def _rest() -> Answer:
    """What a second look is judged on: all of a larger protocol but what the first has seen; none where that is all."""
    made, tokenizer = documents(), text_tokenizer()
    larger = replace(PROTOCOL, quality_windows=11, decode_windows=9, max_items=0, recall_sequences=5)
    prose, asked = EvalData.of_prose(made, tokenizer, PROTOCOL), EvalData.of_recall(RUNGS, PROTOCOL)
    looks = {
        "prose": prose.rest_of_prose(made, tokenizer, PROTOCOL, larger),
        "recall": asked.rest_of_recall(RUNGS, PROTOCOL, larger),
        "prose, no more": prose.rest_of_prose(made, tokenizer, PROTOCOL, PROTOCOL),
        "recall, no more": asked.rest_of_recall(RUNGS, PROTOCOL, PROTOCOL),
    }
    answer: dict[str, Tensor | list[str]] = {
        "larger": [f"{p.quality_windows} windows, then of {of.quality_windows}" for p, of in protocols.LARGER.items()]
    }
    for name, data in looks.items():
        answer |= {f"{name}: {k}": v for k, v in ({"data": ["none"]} if data is None else _data(data)).items()}
    return answer


def _data(data: EvalData) -> Answer:
    answer: dict[str, Tensor | list[str]] = {}
    for name, found in (("quality", data.quality), ("decode", data.decode), ("error", data.error)):
        answer |= {f"{name}, targets": found.targets, f"{name}, documents": found.documents,
                   f"{name}, digest": [found.digest]}  # fmt: skip
    digests = [f"{task}: {_digest(made)}" for task, made in data.recall.items()]
    return answer | {
        "quality, bytes": torch.where(data.quality_bytes.isnan(), -1, data.quality_bytes).int(),
        "prefix": torch.tensor(data.decode_prefix),
        "items": ["none"] if data.items is None else [data.items.digest, str(data.items.documents.tolist())],
        "recall": digests,
        "long": torch.zeros(0) if data.long is None else torch.tensor([*data.long.shape, int(data.long.sum())]),
        "digest": [data.digest],
    }
