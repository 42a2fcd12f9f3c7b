"""How an observer is named: on the command line, in a suite's mark, in a case's id."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from quambench.errors import BadParameter
from quambench.observers.base import OBSERVERS, Observer
from quambench.observers.outside import find_outside


@dataclass(frozen=True, slots=True)
class ObserverSpec:
    """An observer by name and the parameters given, e.g. percentile[alpha=0.9995,sigma=0.01].

    The name is one of OBSERVERS, `module:Class`, or an entry point that a package installed.
    """

    name: str
    parameters: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        if not self.parameters:
            return self.name
        return f"{self.name}[{','.join(f'{k}={v!r}' for k, v in self.parameters)}]"

    @classmethod
    def parse(cls, text: str) -> ObserverSpec:
        """Read `name` or `name[key=number,...]`; the observer and its parameters must exist.

        raises UnknownName, BadParameter
        """
        match = re.fullmatch(r"\s*([\w.:-]+)\s*(?:\[(.*)\])?\s*", text)
        if match is None:
            raise BadParameter(f"an observer is written name or name[key=number,...] (got {text!r})")
        parameters = []
        for item in filter(None, (match[2] or "").split(",")):
            key, _, value = item.partition("=")
            try:
                parameters.append((key.strip(), float(value)))
            except ValueError:
                raise BadParameter(f"{match[1]}: {key.strip()} must be a number (got {value!r})") from None
        spec = cls(match[1], tuple(sorted(parameters)))
        spec.build()
        return spec

    def build(self, bits: int = 8) -> Observer:
        """A fresh observer."""
        kind = OBSERVERS[self.name] if self.name in OBSERVERS else find_outside(self.name)
        known = [f.name for f in fields(kind) if f.name != "bits"]
        for key, _ in self.parameters:
            if key not in known:
                takes = f"; it takes {', '.join(known)}" if known else "; it takes none"
                raise BadParameter(f"{self.name} has no parameter {key!r}{takes}")
        return kind(bits=bits, **dict(self.parameters))

    @property
    def complete(self) -> ObserverSpec:
        """This observer with its defaults written out: equal for any two ways to name the same one."""
        built = self.build()
        named = ((f.name, getattr(built, f.name)) for f in fields(built) if f.name != "bits")
        return ObserverSpec(self.name, tuple(sorted((name, value) for name, value in named if value is not None)))
