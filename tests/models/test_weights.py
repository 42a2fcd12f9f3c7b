"""Reading weight files in pieces: every piece, of every kind of file, at sizes around a piece's own."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from quambench.core.errors import BadCheckpoint
from quambench.models import weights
from quambench.models.weights import open_weights

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool]
KINDS: dict[str, Callable[[dict[str, Tensor], Path], Path]] = {
    "safetensors": lambda tensors, folder: save_file(tensors, folder / "x.safetensors") or folder / "x.safetensors",
    "torch": lambda tensors, folder: torch.save(tensors, folder / "x.bin") or folder / "x.bin",
}


needs_maps = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's /proc")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 7 elements, mappings let go after 40 bytes."""
    monkeypatch.setattr(weights, "PIECE", 7)
    monkeypatch.setattr(weights, "_KEPT", 40)
    monkeypatch.setattr(weights, "_SHARE", 0)


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    wide = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 100
    return wide > 0 if dtype == torch.bool else wide.to(dtype)


def bits(x: Tensor) -> bytes:
    return x.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@settings(derandomize=True, deadline=None, max_examples=40)
@given(data=st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_the_tensor(tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject) -> None:
    shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
    made = data.draw(st.dictionaries(st.sampled_from("abcd"), st.tuples(shapes, st.sampled_from(DTYPES)), min_size=1))
    tensors = {name: random_bits(*about, seed=i) for i, (name, about) in enumerate(made.items())}
    opened = open_weights(KINDS[kind](tensors, tmp_path_factory.mktemp("x")))
    assert {n: (s.shape, s.dtype) for n, s in opened.stored.items()} == made
    for name in data.draw(st.permutations(sorted(tensors))):
        pieces = [piece.clone() for piece in opened.pieces(name)]
        assert all(len(piece) == 7 for piece in pieces[:-1]) and all(1 <= len(piece) <= 7 for piece in pieces)
        assert b"".join(map(bits, pieces)) == bits(tensors[name])


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:1].expand(20),
        lambda x: x[::2],
        lambda x: x.view(4, 5).T,
        lambda x: torch.as_strided(x, (1,), (0,)),
        lambda x: torch.as_strided(x, (1, 1), (3, 0)),
        lambda x: x[0],
    ],
    ids=["expanded", "every second", "transposed", "one, stride 0", "one of two sides", "scalar"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("zipped", [True, False])
def test_pieces_of_a_view_have_steps_of_one(tmp_path: Path, view, dtype, zipped) -> None:
    """Their bytes are asked for, of a file that holds the strides that a view has or a corrupt file says."""
    tensor = view(torch.arange(20, dtype=dtype))
    torch.save({"a": tensor}, tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
    pieces = [piece.view(torch.uint8).numpy().tobytes() for piece in open_weights(tmp_path / "x.bin").pieces("a")]
    assert b"".join(pieces) == bits(tensor.clone(memory_format=torch.contiguous_format))
    assert max(map(len, pieces)) <= 7 * tensor.element_size()


@pytest.mark.parametrize("kind", KINDS)
def test_two_tensors_at_once(tmp_path: Path, kind: str) -> None:
    tensors = {name: torch.arange(50.0) + i for i, name in enumerate("ab")}
    opened = open_weights(KINDS[kind](tensors, tmp_path))
    for a, b in zip(opened.pieces("a"), opened.pieces("b"), strict=True):
        assert torch.equal(a + 1, b)


@needs_maps
def test_a_mapping_is_let_go_and_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = KINDS["torch"]({"a": torch.arange(100.0)}, tmp_path)

    def mapped() -> int:
        return sum(str(path) in line for line in Path("/proc/self/maps").read_text().splitlines())

    loads = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: loads.append(k["mmap"]) or load(*a, **k))
    opened = open_weights(path)
    for piece in opened.pieces("a"):
        assert piece.numel()
        del piece
        assert mapped() <= 1
    # 14 pieces of 28 bytes and one of 2: every second one passes 40 bytes. Once more at the start.
    assert loads == [True] * 8
    opened.let_go()
    assert mapped() == 0


@needs_maps
def test_shards_are_mapped_one_at_a_time(tmp_path: Path) -> None:
    for name in "ab":
        torch.save({name: torch.arange(3.0)}, tmp_path / f"{name}.bin")
    index = tmp_path / "x.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "a.bin", "b": "b.bin"}}))
    opened = open_weights(index)
    for name in "abab":
        for piece in opened.pieces(name):
            lines = Path("/proc/self/maps").read_text().splitlines()
            assert [n for n in "ab" if any(f"/{n}.bin" in line for line in lines)] == [name]
            del piece


@pytest.mark.parametrize("held", ["one at a time", "all"])
def test_shards_that_cannot_be_mapped_are_in_memory_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    """And the twin: what lets go of mappings alone holds them all."""
    for i, name in enumerate("abc"):
        torch.save({name: torch.arange(20.0) + i}, tmp_path / f"{name}.bin", _use_new_zipfile_serialization=False)
    index = tmp_path / "x.index.json"
    index.write_text(json.dumps({"weight_map": {name: f"{name}.bin" for name in "abc"}}))
    loaded: list[tuple[str, weakref.ref[Tensor]]] = []
    load = torch.load

    def noting(*args: Any, **named: Any) -> Any:
        found = load(*args, **named)
        loaded.extend((name, weakref.ref(tensor)) for name, tensor in found.items())
        return found

    monkeypatch.setattr(torch, "load", noting)
    if held == "all":
        monkeypatch.setattr(weights.TorchFile, "let_go", lambda self: None)
    opened = open_weights(index)
    alive = {name for name, tensor in loaded if tensor() is not None}
    assert alive == (set() if held == "one at a time" else set("abc"))
    for name in "abcab":
        for n, piece in enumerate(opened.pieces(name)):
            assert piece[0] == 7 * n + "abc".index(name)
            alive = {name for name, tensor in loaded if tensor() is not None}
            assert alive == ({name} if held == "one at a time" else set("abc"))
            del piece


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    path = KINDS["safetensors"]({"a": torch.arange(30.0)}, tmp_path)
    opened = open_weights(path)
    os.truncate(path, path.stat().st_size - 8)
    with pytest.raises(BadCheckpoint, match="was cut while it was read"):
        list(opened.pieces("a"))


def test_a_type_that_is_unknown_here(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(BadCheckpoint, match="not a readable weight file"):
        open_weights(path)
