"""The number of UTF-8 bytes that a token stands for, from what a tokenizer.json says about spelling.

bytes     GPT-2's: a character for each byte of the text, so that a token may hold half a character
fallback  SentencePiece's: the text's own characters, ▁ for a space, <0xE2> for a byte of a character that has no token
text      as fallback without bytes: a character that has no token is unknown, and a text with one is not counted
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

from tokenizers import pre_tokenizers

SPACE = "▁"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_ALL_BYTES = {f"<0x{i:02X}>" for i in range(256)}
_MARKS = ("continuing_subword_prefix", "end_of_word_suffix")
_KEEP_TEXT = {"NFC", "NFD", "Prepend"}  # normalizers after which a text is still the same to a reader
_SPLIT_ALONE = {"Digits", "Punctuation", "Split", "UnicodeScripts", "ByteLevel", "Metaspace"}


@dataclass(frozen=True, slots=True)
class Spelling:
    """The way in which a tokenizer spells its tokens.

    kind     bytes, fallback or text, as above
    exact    the bytes of any text are those of its tokens' spelling, one by one
    unknown  the token for characters that have none, which spells nothing; "" where every text can be spelled
    refusal  the reason why bytes cannot be counted; "" where they can
    """

    kind: str = ""
    exact: bool = False
    unknown: str = ""
    refusal: str = ""

    def length(self, token: str, added: bool) -> int:
        """Return the bytes that a token stands for by its spelling alone.

        added  the token stands beside the model's own vocabulary and is spelled as it is
        """
        if added:
            return len(token.encode())
        if self.kind == "bytes":
            return len(token)
        if self.kind == "fallback" and _BYTE.fullmatch(token):
            return 1
        return len(token.replace(SPACE, " ").encode())


def spelling_of(document: Mapping[str, Any], vocabulary: Collection[str]) -> Spelling:
    """Return how a tokenizer spells.

    document    a whole tokenizer.json
    vocabulary  all its tokens
    """
    model = document["model"]
    if model["type"] not in ("BPE", "Unigram"):
        return Spelling(refusal=f"tokens of a {model['type']} model do not spell the text")
    if mark := next((model[name] for name in _MARKS if model.get(name)), ""):
        return Spelling(refusal=f"its tokens are spelled with {mark!r}, which is none of the text")
    normalizers, splits = _steps(document, "normalizer"), _steps(document, "pre_tokenizer")
    for step in normalizers:
        if step["type"] not in _KEEP_TEXT and not _marks_spaces(step):
            return Spelling(refusal=f"its normalizer {step['type']} changes the text")
    for step in splits:
        if step["type"] not in _SPLIT_ALONE or step.get("behavior") == "Removed":
            return Spelling(refusal=f"its pre-tokenizer {step['type']} drops some of the text")
    if greedy := next((t["content"] for t in document["added_tokens"] if not t["special"] and _takes_more(t)), None):
        return Spelling(refusal=f"its added token {greedy!r} takes the spaces beside it")
    if other := next((step["replacement"] for step in splits if step.get("replacement", SPACE) != SPACE), None):
        return Spelling(refusal=f"its spaces are spelled {other!r}")
    if any(step["type"] == "ByteLevel" for step in splits):
        whole = set(pre_tokenizers.ByteLevel.alphabet()) <= set(vocabulary)
        as_it_is = not normalizers and not any(step.get("add_prefix_space") for step in splits)
        return Spelling("bytes", exact=as_it_is) if whole else Spelling(refusal="some bytes have no token")
    if model.get("byte_fallback") and set(vocabulary) >= _ALL_BYTES:
        return Spelling("fallback")
    unknown = _unknown(model)
    return Spelling("text", unknown=unknown) if unknown else Spelling(refusal="it drops what it has no token for")


def check_merges(document: Mapping[str, Any]) -> None:
    """Check that every merge is of known tokens and into one. Where not, `tokenizers` may panic, or end the process.

    raises ValueError, and any error of a document that is no tokenizer.json
    """
    model = document["model"]
    prefix = model.get("continuing_subword_prefix") or ""
    for merge in model.get("merges") or ():
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        there = {first, second, first + second.removeprefix(prefix)} <= model["vocab"].keys()
        if not there or not second.startswith(prefix):
            raise ValueError(f"it merges {first!r} and {second!r} into a token that its vocabulary lacks")


def bytes_of_tokens(text: str, ends: Sequence[int], spelled: Sequence[int]) -> list[int]:
    """Return the bytes of `text` that each token stands for; their sum is the text's.

    ends     index of the character behind each token's last, in order
    spelled  bytes of each token's spelling: they count where they are right, and they divide a character between tokens

    A character that has no token of its own, as white space that is dropped, counts with the token behind it.
    """
    if sum(spelled) == len(text.encode()):
        return list(spelled)
    until = [0, *accumulate(len(character.encode()) for character in text)]
    reached = [until[min(end, len(text))] for end in accumulate(ends, max)]
    if reached:
        reached[-1] = until[-1]
    found: list[int] = []
    before = 0
    for end, same in groupby(range(len(reached)), key=reached.__getitem__):
        said = [spelled[i] for i in same]
        total = end - before
        found += said if sum(said) == total else [total] + [0] * (len(said) - 1)
        before = end
    return found


def _steps(document: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Return a part of a tokenizer.json as a list of steps, with its sequences laid out."""

    def laid_out(step: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
        if step is None:
            return []
        if step["type"] != "Sequence":
            return [step]
        return [one for inner in step.get(f"{name}s") or step.get("pretokenizers") or () for one in laid_out(inner)]

    return laid_out(document[name])


def _marks_spaces(step: Mapping[str, Any]) -> bool:
    found: bool = step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == SPACE
    return found


def _unknown(model: Mapping[str, Any]) -> str:
    if model["type"] == "BPE":
        return model.get("unk_token") or ""
    at = model.get("unk_id")
    return "" if at is None else str(model["vocab"][at][0])


def _takes_more(token: Mapping[str, Any]) -> bool:
    return bool(token["lstrip"] or token["rstrip"])
