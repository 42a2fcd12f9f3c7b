"""Reading of weight files tensor by tensor, and each tensor in pieces, so that no file is ever in memory whole.

safetensors' bytes are read from where the header says they are; a .bin of torch is mapped. Pages of a mapping count
as memory of this process once they have been touched, so the mapping is let go and made anew every few megabytes.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from quambench.core import reading
from quambench.core.errors import BadCheckpoint
from quambench.core.pointers import check_fetched
from quambench.core.reading import Unreadable, check_archive, check_file, shown

PIECE = 1 << 20  # elements handed on at once
_KEPT = 1 << 23  # bytes of a mapping that may have been touched before it is let go ...
_SHARE = 1 / 128  # ... or this share of the file, where that is more: mapping a large one anew takes milliseconds
# An index lists the files that hold the tensors.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # the first found is read
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"}
_DTYPES |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
_DTYPES |= {f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)}
_DTYPES |= {f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)}


@dataclass(frozen=True, slots=True)
class Stored:
    """The type and shape that a file gives for a tensor, before any of it is read."""

    dtype: torch.dtype
    shape: tuple[int, ...]


class Weights(Protocol):
    """The tensors of one file or of several, under the names they are stored by."""

    @property
    def stored(self) -> Mapping[str, Stored]:
        """The type and shape of each tensor, by name."""

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Yield the tensor's elements in row-major order, as stored: (PIECE,), the last one shorter.

        Each piece is valid until the next is asked for. raises BadCheckpoint
        """

    def let_go(self) -> None:
        """Free what is mapped or in memory; `pieces` maps or reads it again."""


def open_weights(source: Path) -> Weights:
    """Open a weight file, or an index of several. raises BadCheckpoint"""
    check_fetched(source, BadCheckpoint)
    if source.suffix == ".json":
        return Shards(source)
    return SafetensorsFile(source) if source.suffix == ".safetensors" else TorchFile(source)


def unreadable(source: Path, error: Exception) -> BadCheckpoint:
    """Return the error for a weight file; both readers raise whatever the corrupt part happens to trip."""
    why = error.why if isinstance(error, Unreadable) else one_line(error)
    return BadCheckpoint(f"{shown(source)} is not a readable weight file: {why}")


class SafetensorsFile:
    """A safetensors file. The format's own reader judges the header; the bytes are then read without mapping
    anything.
    """

    def __init__(self, path: Path) -> None:
        try:
            check_file(path)
            with safe_open(path, framework="pt"):
                pass  # opening it compares the header with the file's size
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header: dict[str, Any] = json.loads(file.read(size))
            header.pop("__metadata__", None)
            self.stored = {n: Stored(_dtype(about["dtype"]), tuple(about["shape"])) for n, about in header.items()}
        except Exception as error:
            raise unreadable(path, error) from None
        self._path = path
        self._begin = {name: 8 + size + about["data_offsets"][0] for name, about in header.items()}

    def pieces(self, name: str) -> Iterator[Tensor]:
        dtype, left = self.stored[name].dtype, math.prod(self.stored[name].shape)
        if not left:
            return
        # Memory of the kernel's: in malloc's heap, a buffer for each tensor would leave a hole between weights.
        buffer = torch.frombuffer(mmap(-1, min(left, PIECE) * dtype.itemsize), dtype=torch.uint8)
        with self._path.open("rb") as file:
            file.seek(self._begin[name])
            while left:
                part = buffer[: min(left, PIECE) * dtype.itemsize]
                if file.readinto(part.numpy().data) != len(part):
                    raise BadCheckpoint(f"{self._path} was cut while it was read")
                yield part.view(dtype)
                left -= len(part) // dtype.itemsize

    def let_go(self) -> None:
        pass  # nothing is held between calls


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, _DTYPES.get(name, ""), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"tensors of type {name} are unknown here")
    return dtype


class TorchFile:
    """A file of torch.save, read through torch.load(weights_only=True): no checkpoint can run code.

    Files of torch before 1.6 are no zip archives and cannot be mapped: they are in memory whole until `let_go`.
    """

    def __init__(self, path: Path) -> None:
        try:
            check_archive(path)
        except Unreadable as error:
            raise unreadable(path, error) from None
        self._path, self._touched = path, 0
        self._mapped = zipfile.is_zipfile(path)
        self._kept = max(_KEPT, int(path.stat().st_size * _SHARE)) if self._mapped else math.inf
        self._tensors: dict[str, Tensor] | None = None
        self.stored = {name: Stored(t.dtype, tuple(t.shape)) for name, t in self._open().items()}

    def _open(self) -> dict[str, Tensor]:
        if self._tensors is None:
            try:
                found = torch.load(self._path, map_location="cpu", weights_only=True, mmap=self._mapped)
            except Exception as error:
                raise unreadable(self._path, error) from None
            if not isinstance(found, dict) or not all(isinstance(k, str) and _is_dense(t) for k, t in found.items()):
                inner = next((key for key in ("state_dict", "model") if isinstance(found, dict) and key in found), "")
                hint = f": save what it has under {inner!r} by itself" if inner else ""
                raise BadCheckpoint(f"{self._path} must hold a dictionary of dense tensors{hint}")
            self._tensors = dict(found)
        return self._tensors

    def pieces(self, name: str) -> Iterator[Tensor]:
        tensor = self._open()[name].detach()
        if not tensor.is_contiguous() or tensor.numel() == 1:  # one element is contiguous whatever its stride says
            whole = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
            yield from whole.view(-1).split(PIECE)  # a view of something else: rare, so copied whole
            return
        size = tensor.numel()
        del tensor
        for at in range(0, size, PIECE):
            piece = self._open()[name].detach().view(-1)[at : at + PIECE]
            self._touched += piece.nbytes
            yield piece
            if self._touched > self._kept:
                del piece
                self.let_go()

    def let_go(self) -> None:
        self._tensors, self._touched = None, 0


def _is_dense(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and value.device.type == "cpu"


class Shards:
    """The files that an index lists; each must hold exactly what the index says."""

    def __init__(self, index: Path) -> None:
        files = read_json(index).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(f, str) and Path(f).name == f for f in files.values()):
            raise BadCheckpoint(f"{index}: weight_map must map tensor names to files of the same folder")
        self._of: dict[str, Weights] = {}
        self._last: Weights | None = None  # the shard that was read last: only one is held
        for file in sorted(set(files.values())):
            shard = open_weights(index.parent / file)
            listed = {name for name, where in files.items() if where == file}
            if listed != set(shard.stored):
                raise BadCheckpoint(f"{index.parent / file}: {difference(listed, shard.stored)}, says {index.name}")
            shard.let_go()
            self._of |= dict.fromkeys(listed, shard)
        self.stored = {name: shard.stored[name] for name, shard in self._of.items()}

    def pieces(self, name: str) -> Iterator[Tensor]:
        if self._last is not self._of[name]:
            self.let_go()
            self._last = self._of[name]
        return self._last.pieces(name)

    def let_go(self) -> None:
        if self._last is not None:
            self._last.let_go()


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. raises BadCheckpoint where the file is missing or holds no JSON object"""
    if not path.exists():
        raise BadCheckpoint(f"{path.parent} has no {path.name}")
    check_fetched(path, BadCheckpoint)
    try:
        raw = reading.read_json(path)
    except Unreadable as error:
        raise BadCheckpoint(f"{path} is not readable JSON: {error.why}") from None
    if not isinstance(raw, dict):
        raise BadCheckpoint(f"{path} must hold a JSON object (got {type(raw).__name__})")
    return raw


def difference(expected: Iterable[str], found: Iterable[str]) -> str:
    """Return how two collections of names differ: "lacks a, b and 3 more; has unexpected c"."""
    parts = []
    for what, names in (("lacks", set(expected) - set(found)), ("has unexpected", set(found) - set(expected))):
        first = sorted(names)[:3]
        more = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
        parts += [f"{what} {', '.join(first)}{more}"] if names else []
    return "; ".join(parts)


def one_line(error: BaseException) -> str:
    """Return the error's kind and the first line of its message that is not empty."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {shown(lines[0])}" if lines else type(error).__name__
