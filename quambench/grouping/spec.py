"""The spelling of a grouping."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from quambench.core.errors import UnknownName
from quambench.core.spec import Spec
from quambench.grouping.base import GROUPINGS, Grouping
from quambench.grouping.outside import find_outside, is_outside

_NUMBERS = re.compile(r"(0|[1-9][0-9]{0,5})x(0|[1-9][0-9]{0,5})")  # no model has a million heads


@dataclass(frozen=True, slots=True)
class GroupingSpec(Spec):
    """A grouping by name and the parameters given, e.g. 4x4, 4x4[method=dp], adaptive[base=8].

    The name is one of GROUPINGS, numbers, `module:function`, or an entry point that a package installed.
    """

    kind: ClassVar[str] = "a grouping"
    fixed: ClassVar[frozenset[str]] = frozenset({"n_head_groups", "n_dim_groups"})

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers in the name: (4, 2) for 4x2; () for another name."""
        match = _NUMBERS.fullmatch(self.name)
        return tuple(map(int, match.groups())) if match else ()

    def found(self) -> type[Grouping]:
        if self.numbers:
            return GROUPINGS["clustered"]
        if is_outside(self.name):
            return find_outside(self.name)
        named = [name for name in GROUPINGS if name != "clustered"]
        if self.name not in named:
            raise UnknownName("grouping of heads and channels", self.name, ("1x1", "4x4", *named))
        return GROUPINGS[self.name]

    def build(self) -> Any:
        return self.make(**dict(zip(("n_head_groups", "n_dim_groups"), self.numbers, strict=False)))
