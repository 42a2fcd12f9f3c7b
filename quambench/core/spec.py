"""The spelling of a thing with parameters: on the command line, in a suite's mark, in a case's id.

name[key=value,...]     value: 0.5, a word, or a list a|b|c of numbers or of pairs 50:0.5
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import Field, dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar, Self, cast

from quambench.core.errors import BadParameter, QuambenchError

Item = float | tuple[float, ...]
Value = float | str | tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Spec:
    """A name and the parameters written with it. A subclass says which dataclass stands behind a name.

    Methods that end in an object of that dataclass are `build` and `make`; those that return another spec are
    `complete` (defaults added) and `given` (values replaced). `parse` and `build` raise UnknownName or BadParameter,
    each in one line.
    """

    kind: ClassVar[str] = "thing"  # the word for it in messages
    fixed: ClassVar[frozenset[str]] = frozenset()  # fields that no spec may set: the caller of `make` gives them

    name: str
    parameters: tuple[tuple[str, Value], ...] = ()

    def __str__(self) -> str:
        if not self.parameters:
            return self.name
        return f"{self.name}[{','.join(f'{k}={written(v)}' for k, v in self.parameters)}]"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a spec from text. Its name and its parameters must exist."""
        match = re.fullmatch(r"\s*([\w.:-]+)\s*(?:\[(.*)\])?\s*", text)
        if match is None or cls.miswritten(text):
            hint = f": write {cls.miswritten(text)}" if cls.miswritten(text) else ""
            raise BadParameter(f"{cls.kind} is written name or name[key=value,...]{hint} (got {text!r})")
        bare = cls(match[1])
        known = bare.settable()  # an unknown name says itself what it is
        try:
            given = bare._given(match[2] or "")
            spec = cls(match[1], tuple((key, _read(key, given[key], known.get(key))) for key in sorted(given)))
            spec.values  # noqa: B018  (which checks them)
        except BadParameter as error:
            raise error.within(text.strip()) from None
        return spec

    @classmethod
    def miswritten(cls, text: str) -> str:
        """Return what to type instead of a known name with its value outside of brackets, "percentile:0.999"; else "".

        "percentile:Mine" gives "": what follows the colon could be a name in a module.
        """
        match = re.fullmatch(r"\s*(\w+)\s*[:(@{=\s]\s*([^\[].*?)[)}]?\s*", text)
        if match is None or re.fullmatch(r"[A-Za-z_][\w.]*(\[.*\])?", match[2]):
            return ""
        try:
            cls(match[1]).found()
        except QuambenchError:
            return ""
        return cls(match[1])._with(match[2])

    def _given(self, inside: str) -> dict[str, str]:
        """Return the parameters inside of the brackets, as text by name.

        raises BadParameter for what has no name or no value, or is there twice
        """
        given: dict[str, str] = {}
        last = ""
        for item in filter(None, (part.strip() for part in inside.split(","))):
            key, named, value = (part.strip() for part in item.partition("="))
            if not named and item.isdecimal() and re.fullmatch(r"-?\d+", given.get(last, "")):
                raise BadParameter(f"a comma parts parameters: write {last}={given[last]}.{item}")
            if not (named and key and value):
                raise BadParameter(
                    f"parameters are written name=value (got {item!r}): write {self._with(key or value)}"
                )
            if key in given:
                raise BadParameter(f"{key} is given twice")
            self._check_known(key)
            given[key] = value
            last = key
        return given

    def _with(self, value: str) -> str:
        """Return the spec as it is typed with a value, "0.5" or "alpha:0.5"; with a default where no parameter fits."""
        key, _, rest = (part.strip() for part in re.sub(r"[:=\s]+", "=", value, count=1).partition("="))
        known = self.settable()
        tried = [(key, rest)] if key in known and rest else [(name, value) for name in known if value not in known]
        for name, text in tried:
            with suppress(QuambenchError):
                made = type(self)(self.name, ((name, _read(name, text, known[name])),))
                made.values  # noqa: B018  (which checks them)
                return str(made)
        name = key if key in known else next(iter(known), "")
        return f"{self.name}[{name}={written(cast(Value, known[name].default))}]" if name else self.name

    def found(self) -> type:
        """Return the dataclass behind the name, which every subclass defines; no object is made. raises UnknownName"""
        raise NotImplementedError

    def settable(self) -> dict[str, Field[Any]]:
        """Return the dataclass's fields that a spec may set, by name: all but `fixed`, the neutral ones last."""
        free = (f for f in fields(self.found()) if f.name not in self.fixed)
        return {f.name: f for f in sorted(free, key=lambda f: bool(f.metadata.get("neutral")))}

    def build(self) -> Any:
        """Return a new object with the written parameters; `make` without further values."""
        return self.make()

    def make(self, **fixed: Any) -> Any:
        """Return a new object with the written parameters and with values for fields in `fixed`."""
        for key, _ in self.parameters:
            self._check_known(key)
        return self.found()(**fixed, **dict(self.parameters))

    def _check_known(self, key: str) -> None:
        known = self.settable()
        if key not in known:
            takes = f"; it takes {', '.join(known)}" if known else "; it takes none"
            raise BadParameter(f"{self.name} has no parameter {key!r}{takes}")

    @property
    def values(self) -> dict[str, Value | None]:
        """Return every parameter with its value, defaults included. One object of each spec is built for it in a
        process.

        raises BadParameter where a value is outside its parameter's domain
        """
        return dict(_values(self, self.found(), repr(self.parameters)))

    @property
    def complete(self) -> Self:
        """The same spec with its defaults written out, so that two spellings of one thing are equal.

        A parameter that is marked neutral stands only where it is not at its default: it was added after
        results were stored without it.
        """
        values = self.values
        named = [(f, values[f.name]) for f in self.settable().values()]
        kept = [(f.name, v) for f, v in named if v is not None and not (f.metadata.get("neutral") and v == f.default)]
        return type(self)(self.name, tuple(sorted(kept)))

    def given(self, **parameters: Value) -> Self:
        """Return a spec of the same name in which these parameters replace or join the written ones."""
        return type(self)(self.name, tuple(sorted((dict(self.parameters) | parameters).items())))


@lru_cache(maxsize=4096)
def _values(spec: Spec, found: type, as_given: str) -> tuple[tuple[str, Value | None], ...]:
    """Build the spec once and return its parameters' values.

    found     the class behind the name now, since code from outside may be loaded anew
    as_given  the parameters as text, since 1 equals 1.0 as a key
    """
    built = spec.build()
    return tuple((name, getattr(built, name)) for name in spec.settable())


def written(value: Value) -> str:
    """Return a value as `parse` reads it."""
    if isinstance(value, tuple):
        return "|".join(":".join(map(repr, item)) if isinstance(item, tuple) else repr(item) for item in value)
    return value if isinstance(value, str) else repr(value)


def _read(key: str, text: str, field: Field[Any] | None) -> Value:
    """Return a value of the type of the parameter's default; an unknown parameter is a number until `build` refuses it.

    raises BadParameter
    """
    default = field.default if field else 0.0
    if isinstance(default, str):
        return text
    try:
        if isinstance(default, tuple):
            items = (tuple(map(float, item.split(":"))) for item in text.split("|"))
            return tuple(item if len(item) > 1 else item[0] for item in items)
        return float(text)
    except ValueError:
        wanted = "numbers, as in 0.5|1.0" if isinstance(default, tuple) else "a number"
        raise BadParameter(f"{key} must be {wanted} (got {text!r})") from None
