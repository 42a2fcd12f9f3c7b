"""What a policy decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quambench.models.config import ModelConfig
from quambench.observers import ObserverSpec
from quambench.registry import Registry


@dataclass(frozen=True, slots=True)
class Assignment:
    """One site's observer and the granularity of its scale."""

    observer: ObserverSpec
    granularity: str


Plan = Mapping[str, Assignment]
"""Site name -> Assignment, for every site of a model, in forward order."""

POLICIES: Registry[Callable[[ModelConfig, ObserverSpec], Plan]] = Registry("policy", "quambench/policy/")
