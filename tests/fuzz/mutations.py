"""Small changes to JSON, bytes and specs, of the kinds that a slip, a script, a bad disk or malice makes."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

DEEP, DIGITS = "@deep@", "@digits@"  # stand for what json.dumps cannot write
NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 0.5, -0.0, 1e-300, 1e308, float("inf"), float("-inf"), float("nan"), 2**31, 2**63,
    -(2**63) - 1, 10**30, 10**320, "", "x", "NaN", "1", "0.5", "a\0b", "\x1b[31m", "a\nb", "\ud800", "é", "../x",
    "/etc/passwd", "x" * 300, "x" * 5000, "layers.0.z", "layers.x.z", "layers.1", "lm_head:input", [], {}, [[]], [None],
    [1, 2], {"a": 1}, {"": []}, DEEP, DIGITS,
)  # fmt: skip
TOKENS = (
    b"null", b"{}", b"[]", b"NaN", b"-Infinity", b'"', b"\\", b"\0", b"\xff", b"\xed\xa0\x80", b"1e999", b"[" * 2000,
    b"9" * 5000, b'{"a":' * 2000, b",", b"}", b"\n", b"\\ud800", b"\xef\xbb\xbf",
)  # fmt: skip


def nasty(chance: random.Random) -> Any:
    """One of NASTY, to do with as one likes."""
    return copy.deepcopy(chance.choice(NASTY))


def changed_json(chance: random.Random, document: Any, times: int | None = None) -> Any:
    """A copy with a few changes: keys gone, renamed or given another's value, values of other types or a little off."""
    document = json.loads(json.dumps(document))
    for _ in range(times or chance.choice((1, 1, 1, 2, 4))):
        place = _place(chance, document)
        if place is None:
            return nasty(chance)
        _change(chance, *place)
    return document


def _place(chance: random.Random, document: Any) -> tuple[Any, Any] | None:
    """A container and a key in it; any depth is as likely as the next."""
    found, node = [], document
    while isinstance(node, dict | list) and node:
        key = chance.choice(list(node)) if isinstance(node, dict) else chance.randrange(len(node))
        found.append((node, key))
        node = node[key]
    return chance.choice(found) if found else None


def _change(chance: random.Random, of: Any, key: Any) -> None:
    value = of[key]
    kind = chance.randrange(8)
    if kind == 0:
        del of[key]
    elif kind == 1:
        of[key] = nasty(chance)
    elif kind == 2 and isinstance(of, dict):
        of[chance.choice(("", "x", "é", str(key) + " ", str(key).upper(), "x" * 300))] = of.pop(key)
    elif kind == 3:
        other = chance.choice(list(of)) if isinstance(of, dict) else chance.randrange(len(of))
        of[key], of[other] = of[other], value
    elif kind == 4 and isinstance(of, list):
        of.insert(chance.randrange(len(of) + 1), copy.deepcopy(value))
    elif kind == 4:
        of[chance.choice(("x", str(key) + "2", "a\0", "\ud800"))] = chance.choice((copy.deepcopy(value), nasty(chance)))
    elif isinstance(value, bool):
        of[key] = not value
    elif isinstance(value, int | float) and abs(value) < 1e300:
        of[key] = chance.choice(
            (value + 1, -value, value * 2, value / 3, str(value), [value], value * 1.0000001, value + 0.5)
        )
    elif isinstance(value, str):
        of[key] = changed_text(chance, value)
    else:
        of[key] = nasty(chance)


def changed_text(chance: random.Random, text: str) -> str:
    """With a letter gone, doubled, exchanged or put in."""
    at = chance.randrange(len(text) + 1)
    letters = chance.choice(("", "", text[at : at + 1] * 2, chance.choice(LETTERS)))
    return text[:at] + letters + text[at + chance.randrange(3) :]


def as_bytes(chance: random.Random, document: Any) -> bytes:
    """JSON; now and then with a key twice."""
    raw = json.dumps(document).encode()
    raw = raw.replace(f'"{DEEP}"'.encode(), b"[" * 3000 + b"]" * 3000).replace(f'"{DIGITS}"'.encode(), b"7" * 5000)
    if chance.random() < 0.03 and raw.count(b"{"):
        at = raw.index(b"{", chance.randrange(raw.rindex(b"{") + 1)) + 1
        end = raw.find(b":", at)
        if end > 0:
            raw = raw[:at] + raw[at:end] + b": 0, " + raw[at:]
    return raw


def changed_bytes(chance: random.Random, raw: bytes, head: int = 0) -> bytes:
    """Bits flipped, bytes gone, doubled or put in, the end cut off; half of it in the first `head` bytes."""
    if not raw:
        return chance.choice(TOKENS)
    made = bytearray(raw)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        size = min(head, len(made)) if head and chance.random() < 0.5 else len(made)
        at = chance.randrange(size) if size else 0
        kind = chance.randrange(7)
        if kind <= 1 and made:
            made[at] ^= 1 << chance.randrange(8)
        elif kind == 2 and made:
            made[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x30, 0x39, 0x7B))
        elif kind == 3:
            del made[at : at + chance.choice((1, 2, 8, 100))]
        elif kind == 4:
            made[at:at] = made[at : at + chance.choice((1, 8, 100))]
        elif kind == 5:
            made[at:at] = chance.choice(TOKENS)
        else:
            del made[at:]
    return bytes(made)


_WORDS = """
    percentile percentile[alpha=0.999] percentile[alpha=0.9,sigma=0.5] running_max running_max[clip_ratio=0.9] mse
    mse[steps=20] mse[low=0.1,high=0.9] entropy[steps=9] kl aciq[prior=laplace] gauss_2.5sigma
    warmup_percentile[schedule=50:0.5|inf:0.1] dynamic_percentile[candidates=0.9|1.0] 1x1 4x4 2x2[method=dp]
    adaptive[base=8] channel channel_state head ssd_group split uniform quamba quamba2
    first_middle_last[first=0.9,width=2] scale_multiplier[factor=0.8,layers=ends] sensitivity[budget=4,floats=1]
    w8a8 w4a16 w8a4-float_ssm_state-asymmetric w16a8-float_embedding mix[w8a8,w4a8*3]
    mix[w8a8*4,embedding=w8,lm_head=w8a8] mix[mix.json]-float_lm_head gptq weights=channel weights=mse@tensor
    weights=percentile[alpha=0.9]@group learned[steps=3,loss=nll] adaround[warm=0.2] full quick
    tasks=prose_lambada+x:5 calibration=os:system calibration=shutil:copy os:system os:system.x os.path:join
    subprocess:Popen json:JSONDecoder json:JSONDecoder.decode json:decoder.JSONDecoder[strict=0]
    collections:OrderedDict math:pi math:nan.real string:Template.pattern.x fractions:Fraction types:ModuleType
    nowhere:X json.nowhere:X .json:X :X json: json:.. os:environ enum:Enum abc:ABC typing:Any builtins:exit
    builtins:int builtins:type sys:exit queue:Queue[maxsize=3] os:link os:abort threading:Thread
    decimal:Decimal.from_float
"""
WORDS = _WORDS.split()
N_OBSERVERS = 12  # of WORDS, at the beginning
NUMBERS = (
    "0", "-1", "1", "1.0", "0.5", "nan", "inf", "-inf", "1e400", "1e-400", "9" * 5000, "100000000", "9" * 20, "٣", "",
    "1_0", " 1", "0x1", "true", "1|2", "1:2", "1:2|inf:3", "x" * 400, "1e9",
)  # fmt: skip
KEYS = (
    "alpha",
    "sigma",
    "steps",
    "low",
    "high",
    "clip_ratio",
    "base",
    "x",
    "bits",
    "n_head_groups",
    "self",
    "schedule",
)
LETTERS = "0123456789[](){}=,:/|*@+-._ \0\n\ud800eé٣axw"


def changed_spec(chance: random.Random) -> str:
    """A case's text, or what was one."""
    words = [chance.choice(WORDS[:N_OBSERVERS] if chance.random() < 0.7 else WORDS)]
    words += [chance.choice(WORDS) for _ in range(chance.choice((0, 0, 1, 1, 2, 4)))]
    text = "/".join(words)
    for _ in range(chance.choice((0, 0, 0, 1, 1, 2))):
        kind = chance.randrange(4)
        if kind == 0:
            text = changed_text(chance, text)
        elif kind == 1:  # another number
            runs = [i for i, c in enumerate(text) if c.isdigit()]
            if runs:
                at = chance.choice(runs)
                text = text[:at] + chance.choice(NUMBERS) + text[at + 1 :]
        elif kind == 2:
            name = chance.choice(WORDS).partition("[")[0]
            key = chance.choice(KEYS)
            text = f"{name}[{key}={chance.choice(NUMBERS)}]"
        else:
            text = f"mix[w8a8*{chance.choice(NUMBERS)}{',w4a8*99999' * chance.randrange(4)}]"
    return text
