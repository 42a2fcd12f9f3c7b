"""How a thing with parameters is named: on the command line, in a suite's mark, in a case's id.

name[key=value,...]     value: 0.5, a word, or a list a|b|c of numbers or of pairs 50:0.5
"""

from __future__ import annotations

import re
from dataclasses import Field, dataclass, fields
from typing import Any, ClassVar, Self

from quambench.errors import BadParameter

Item = float | tuple[float, ...]
Value = float | str | tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Spec:
    """A name and the parameters given. A subclass says which dataclass stands behind a name.

    raises UnknownName, BadParameter from `parse` and `build`: in one line
    """

    kind: ClassVar[str] = "thing"  # what messages call it
    fixed: ClassVar[frozenset[str]] = frozenset()  # fields that no spec sets

    name: str
    parameters: tuple[tuple[str, Value], ...] = ()

    def __str__(self) -> str:
        if not self.parameters:
            return self.name
        return f"{self.name}[{','.join(f'{k}={written(v)}' for k, v in self.parameters)}]"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a spec; what it names and its parameters must exist."""
        match = re.fullmatch(r"\s*([\w.:-]+)\s*(?:\[(.*)\])?\s*", text)
        if match is None:
            raise BadParameter(f"{cls.kind} is written name or name[key=value,...] (got {text!r})")
        given: dict[str, str] = {}
        for item in filter(None, (match[2] or "").split(",")):
            key, _, value = (part.strip() for part in item.partition("="))
            if key in given:
                raise BadParameter(f"{match[1]}: {key} is given twice")
            given[key] = value
        bare = cls(match[1])
        known = bare.settable()
        parameters = tuple((key, _read(match[1], key, value, known.get(key))) for key, value in sorted(given.items()))
        spec = cls(match[1], parameters)
        spec.build()
        return spec

    def found(self) -> type:
        """The dataclass behind the name."""
        raise NotImplementedError

    def settable(self) -> dict[str, Field[Any]]:
        """Parameters that a spec may give, by name; the neutral ones last."""
        free = (f for f in fields(self.found()) if f.name not in self.fixed)
        return {f.name: f for f in sorted(free, key=lambda f: bool(f.metadata.get("neutral")))}

    def build(self) -> Any:
        """A fresh object with these parameters."""
        return self.make()

    def make(self, **fixed: Any) -> Any:
        """`build`, with values for fields that no spec sets."""
        known = self.settable()
        for key, _ in self.parameters:
            if key not in known:
                takes = f"; it takes {', '.join(known)}" if known else "; it takes none"
                raise BadParameter(f"{self.name} has no parameter {key!r}{takes}")
        return self.found()(**fixed, **dict(self.parameters))

    @property
    def complete(self) -> Self:
        """This with its defaults written out: equal for any two ways to name the same one.

        A parameter that is marked neutral stands only where it is not at its default: it was added after
        results were stored without it.
        """
        built = self.build()
        named = [(f, getattr(built, f.name)) for f in self.settable().values()]
        kept = [(f.name, v) for f, v in named if v is not None and not (f.metadata.get("neutral") and v == f.default)]
        return type(self)(self.name, tuple(sorted(kept)))

    def given(self, **parameters: Value) -> Self:
        """This with other parameters in place of its own."""
        return type(self)(self.name, tuple(sorted((dict(self.parameters) | parameters).items())))


def written(value: Value) -> str:
    """A value as `parse` reads it."""
    if isinstance(value, tuple):
        return "|".join(":".join(map(repr, item)) if isinstance(item, tuple) else repr(item) for item in value)
    return value if isinstance(value, str) else repr(value)


def _read(name: str, key: str, text: str, field: Field[Any] | None) -> Value:
    """By the type of the parameter's default; an unknown parameter is a number until `build` refuses it."""
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
        raise BadParameter(f"{name}: {key} must be {wanted} (got {text!r})") from None
