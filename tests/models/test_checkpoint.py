"""Loading and saving: layouts, the digest, and every way in which a folder can be bad."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from quambench.core.errors import BadCheckpoint, NonFinite, UnknownName
from quambench.int8.fuse import prepare
from quambench.models import LanguageModel, ModelConfig, build, checkpoint
from quambench.models.checkpoint import Checkpoint, bundled_names, load_checkpoint, save_checkpoint

MAMBA = ModelConfig(architecture="mamba", d_model=8, n_layers=2, vocab_size=264, d_state=3, dt_rank=2)
MAMBA2 = ModelConfig(
    architecture="mamba2", d_model=8, n_layers=3, vocab_size=264, d_state=3, head_dim=4, tie_embeddings=False
)
EMBEDDING, HEAD, GAIN = "backbone.embedding.weight", "lm_head.weight", "backbone.layers.1.norm.weight"
TOKENS = torch.arange(14).view(2, 7)


@pytest.fixture
def make(tmp_path: Path, tokenizer_file: Path, randomize: Callable[..., None]) -> Callable[..., Path]:
    """Writes a random model as a folder: make(config, dtype) -> folder."""

    def write(config: ModelConfig = MAMBA, dtype: torch.dtype = torch.float32, folder: str = "model") -> Path:
        model = build(config)
        randomize(model, seed=3)
        save_checkpoint(tmp_path / folder, model, dtype)
        shutil.copy(tokenizer_file, tmp_path / folder / "tokenizer.json")
        return tmp_path / folder

    return write


def weights_of(folder: Path) -> dict[str, Tensor]:
    """Copies, so that the file may be rewritten."""
    return {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = weights_of(folder)
    change(weights)
    save_file(weights, folder / "model.safetensors")


def digest(folder: Path) -> str:
    return load_checkpoint(str(folder)).digest


def assert_one_line(error: pytest.ExceptionInfo[Exception], *parts: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# --- what a checkpoint is -------------------------------------------------------------------------


@pytest.mark.parametrize("config", [MAMBA, MAMBA2], ids=["mamba, tied", "mamba2, untied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_saved_is_loaded(
    make: Callable[..., Path], randomize: Callable[..., None], config: ModelConfig, dtype: torch.dtype
) -> None:
    folder = make(config, dtype)
    assert (HEAD in weights_of(folder)) is not config.tie_embeddings
    assert {tensor.dtype for tensor in weights_of(folder).values()} == {dtype}
    loaded = load_checkpoint(str(folder))
    assert (loaded.name, loaded.config) == (folder.name, config)
    assert not loaded.model.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in loaded.model.parameters())
    assert (loaded.model.lm_head.weight is loaded.model.backbone.embedding.weight) is config.tie_embeddings
    assert loaded.tokenizer.encode("ab") == loaded.tokenizer.encode("a") + loaded.tokenizer.encode("b")
    rounded = build(config)
    randomize(rounded, seed=3)
    rounded.to(dtype).float().requires_grad_(False)  # as loaded ones are: a scan that records gradients sums otherwise
    assert torch.equal(loaded.model(TOKENS)[0], rounded(TOKENS)[0])


def test_loading_leaves_the_random_state_alone(make: Callable[..., Path]) -> None:
    folder = make()
    before = torch.get_rng_state()
    load_checkpoint(str(folder))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_model_outlives_its_file(make: Callable[..., Path]) -> None:
    folder = make()
    model = load_checkpoint(str(folder)).model
    before = model(TOKENS)[0]
    path = folder / "model.safetensors"
    with path.open("r+b") as file:  # in place: a mapped tensor would see it
        file.seek(-4096, os.SEEK_END)
        file.write(bytes(4096))
    assert torch.equal(model(TOKENS)[0], before)


def in_shards(folder: Path) -> None:
    weights, names = weights_of(folder), {}
    for i, part in enumerate((sorted(weights)[::2], sorted(weights)[1::2])):
        names |= dict.fromkeys(part, f"model-{i}.safetensors")
        save_file({name: weights[name] for name in part}, folder / f"model-{i}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (folder / "model.safetensors").unlink()


def in_a_torch_file(folder: Path) -> None:
    torch.save(weights_of(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def by_transformers_names(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update({"backbone.embeddings.weight": weights.pop(EMBEDDING)}))


def with_a_copied_head(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update({HEAD: weights[EMBEDDING].clone()}))


def with_a_table_that_is_no_weight(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update({"backbone.rotary_emb.inv_freq": torch.ones(4)}))


LAYOUTS = [in_shards, in_a_torch_file, by_transformers_names, with_a_copied_head, with_a_table_that_is_no_weight]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_changes_neither_function_nor_digest(
    make: Callable[..., Path], layout: Callable[[Path], None]
) -> None:
    folder = make(dtype=torch.float16)
    before = load_checkpoint(str(folder))
    layout(folder)
    after = load_checkpoint(str(folder))
    assert after.digest == before.digest
    assert torch.equal(after.model(TOKENS)[0], before.model(TOKENS)[0])


@settings(derandomize=True, deadline=None, max_examples=20)
@given(data=st.data())
def test_any_weight_bit_changes_the_digest(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(folder, build(MAMBA))
    shutil.copy(tokenizer_file, folder / "tokenizer.json")
    before = digest(folder)
    weights = weights_of(folder)
    name = data.draw(st.sampled_from(sorted(weights)))
    bits = weights[name].view(torch.int16).flatten()
    at = data.draw(st.integers(0, len(bits) - 1))
    bits[at] ^= 1 << data.draw(st.integers(0, 9))  # of the mantissa: the exponent's may make infinity
    save_file(weights, folder / "model.safetensors")
    assert digest(folder) != before


def test_the_digest_tells_apart(make: Callable[..., Path]) -> None:
    folders = {
        "as it is": make(folder="a"),
        "in another precision": make(dtype=torch.bfloat16, folder="b"),
        "another config, same weights": make(replace(MAMBA, norm_eps=0.5), folder="c"),
        "exchanged": make(folder="d"),
        "in half precision": make(dtype=torch.float16, folder="e"),
        "the same bits read as another type": make(dtype=torch.float16, folder="f"),
    }

    def exchange(weights: dict[str, Tensor]) -> None:
        one, other = "backbone.norm_f.weight", GAIN
        weights[one], weights[other] = weights[other], weights[one]

    rewrite(folders["exchanged"], exchange)
    reread = folders["the same bits read as another type"] / "model.safetensors"
    save_file({name: tensor.view(torch.bfloat16) for name, tensor in weights_of(reread.parent).items()}, reread)
    assert len({digest(folder) for folder in folders.values()}) == len(folders)
    assert digest(make(folder="again")) == digest(folders["as it is"])


# --- saving ---------------------------------------------------------------------------------------


def test_a_broken_save_leaves_the_old_files(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full_disk(tensors: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(folder, build(MAMBA))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_both_files_are_readable_by_the_same_people(make: Callable[..., Path]) -> None:
    modes = {(make() / name).stat().st_mode for name in ("config.json", "model.safetensors")}
    assert len(modes) == 1


def test_saving_refuses_a_weight_that_overflows(tmp_path: Path) -> None:
    model = build(MAMBA)
    with torch.no_grad():
        model.backbone.norm_f.weight[0] = 1e5  # float16 ends at 65504
    with pytest.raises(NonFinite) as error:
        save_checkpoint(tmp_path / "model", model)
    assert_one_line(error, "backbone.norm_f.weight does not fit float16 (100000); use bfloat16 or float32")
    assert not (tmp_path / "model").exists()


def untied(model: LanguageModel) -> LanguageModel:
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * 2)
    return model


@pytest.mark.parametrize("change", [prepare, untied])
def test_saving_refuses_a_model_that_its_config_does_not_describe(
    tmp_path: Path, change: Callable[[LanguageModel], LanguageModel]
) -> None:
    with pytest.raises(BadCheckpoint, match="prepared for quantization"):
        save_checkpoint(tmp_path, change(build(MAMBA)))


# --- bad folders ----------------------------------------------------------------------------------


def set_weight(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda weights: weights.update({name: change(weights[name])}))


def set_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(raw | changes))

    return change


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def cut(size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / "model.safetensors", size)


def remove(*names: str) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda weights: [weights.pop(name) for name in names])


def add(*names: str) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda weights: weights.update({name: torch.ones(1) for name in names}))


def with_another_head(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update({HEAD: weights[EMBEDDING] + 1}))


def with_both_names(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update({"backbone.embeddings.weight": weights[EMBEDDING].clone()}))


def index(content: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        in_shards(folder)
        path = folder / "model.safetensors.index.json"
        raw = json.loads(path.read_text())
        path.write_text(json.dumps(content(raw["weight_map"]) if callable(content) else content))

    return change


class Trap:
    """Pickles as code to run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("code of a checkpoint was run",)


def torch_file(content: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        torch.save(content, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()

    return change


def without(path: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).unlink()


def renamed_in_index(files: dict[str, str]) -> dict[str, Any]:
    return {"weight_map": {("x." + name if name == GAIN else name): file for name, file in files.items()}}


FAULTS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no config": (without("config.json"), ["has no config.json"]),
    "config not JSON": (write("config.json", b"{'d_model': 8}"), ["config.json is not readable JSON"]),
    "config not text": (write("config.json", b"\xff\xfe\xfa"), ["config.json is not readable JSON"]),
    "config too deep": (write("config.json", b"[" * 100_000), ["config.json is not readable JSON"]),
    "config a list": (write("config.json", b"[1]"), ["config.json must hold a JSON object (got list)"]),
    "config lacks a key": (write("config.json", b"{}"), ["config.json", "the key 'd_model' is missing"]),
    "config impossible": (set_config(d_model=10**12), ["config.json describes an impossible model"]),
    "config with many layers": (set_config(n_layer=10**9), ["holds 2 layers, config.json says 1000000000"]),
    "config with other layers": (set_config(n_layer=1), ["holds 2 layers, config.json says 1"]),
    "no tokenizer": (without("tokenizer.json"), ["has no tokenizer.json"]),
    "tokenizer not JSON": (write("tokenizer.json", b"{"), ["tokenizer.json is not a readable tokenizer"]),
    "tokenizer too large": (set_config(vocab_size=256), ["tokenizer.json has 257 tokens", "only 256 rows"]),
    "no weights": (without("model.safetensors"), ["has no weights", "pytorch_model.bin"]),
    "empty weights": (write("model.safetensors", b""), ["model.safetensors is not a readable weight file"]),
    "weights not safetensors": (write("model.safetensors", b"\x80\x04" * 99), ["not a readable weight file"]),
    "cut in the header": (cut(99), ["model.safetensors is not a readable weight file"]),
    "cut in the tensors": (cut(3000), ["model.safetensors is not a readable weight file"]),
    "missing": (remove(GAIN), ["model.safetensors: lacks " + GAIN]),
    "missing embedding": (remove(EMBEDDING), ["lacks " + EMBEDDING]),
    "missing many": (
        remove(*(f"backbone.layers.{i}.mixer.{name}" for i in (0, 1) for name in ("A_log", "D", "in_proj.weight"))),
        ["lacks backbone.layers.0.mixer.A_log, backbone.layers.0.mixer.D", "in_proj.weight and 3 more"],
    ),
    "unexpected": (add("backbone.extra", "x"), ["has unexpected backbone.extra, x"]),
    "both names": (with_both_names, ["has unexpected backbone.embeddings.weight"]),
    "wrong shape": (set_weight(GAIN, lambda t: t[:-1]), [GAIN, "must have shape (8,) (got (7,))"]),
    "transposed": (
        set_weight("backbone.layers.0.mixer.in_proj.weight", lambda t: t.T.contiguous()),
        ["layers.0.mixer.in_proj.weight must have shape (32, 8) (got (8, 32))"],
    ),
    "fewer rows than config says": (set_config(vocab_size=272), [EMBEDDING, "(272, 8) (got (264, 8))"]),
    "integers": (set_weight(GAIN, lambda t: t.to(torch.int8)), [GAIN, "floating point (got torch.int8"]),
    "another head": (with_another_head, [HEAD + " differs from the embedding"]),
    "index not an object": (index([1]), ["index.json must hold a JSON object"]),
    "index without a map": (index({"weight_map": [1]}), ["index.json: weight_map must map"]),
    "index leaves the folder": (index({"weight_map": {GAIN: "../model-0.safetensors"}}), ["of the same folder"]),
    "index names no file": (index({"weight_map": {GAIN: "no.safetensors"}}), ["no.safetensors is not a readable"]),
    "index differs": (index(renamed_in_index), ["lacks x." + GAIN, "has unexpected " + GAIN, "index.json"]),
    "torch file not a dictionary": (torch_file([1]), ["pytorch_model.bin must hold a dictionary of dense tensors"]),
    "torch file with numbers": (torch_file({GAIN: 1.0}), ["pytorch_model.bin must hold a dictionary of dense tensors"]),
    "torch file of Lightning": (torch_file({"state_dict": {}}), ["save what it has under 'state_dict' by itself"]),
    "torch file with odd names": (torch_file({1: torch.ones(1)}), ["must hold a dictionary of dense tensors"]),
    "torch file, sparse": (torch_file({GAIN: torch.eye(2).to_sparse()}), ["a dictionary of dense tensors"]),
    "torch file, no data": (torch_file({GAIN: torch.ones(2, device="meta")}), ["a dictionary of dense tensors"]),
    "torch file with code": (torch_file(Trap()), ["pytorch_model.bin is not a readable weight file"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_folder_is_refused_in_one_line(make: Callable[..., Path], fault: str) -> None:
    folder = make()
    change, message = FAULTS[fault]
    change(folder)
    with pytest.raises(BadCheckpoint) as error:
        load_checkpoint(str(folder))
    assert_one_line(error, str(folder), *message)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("config", [MAMBA, MAMBA2], ids=["mamba, tied", "mamba2, untied"])
@pytest.mark.parametrize("name", [EMBEDDING, GAIN])
def test_a_weight_that_is_not_finite_is_refused(
    make: Callable[..., Path], config: ModelConfig, name: str, value: float
) -> None:
    folder = make(config, torch.float16)

    def poison(tensor: Tensor) -> Tensor:
        tensor.view(-1)[3] = value
        return tensor

    set_weight(name, poison)(folder)
    with pytest.raises(NonFinite) as error:
        load_checkpoint(str(folder))
    assert_one_line(error, "model.safetensors", name)


def load_or_refusal(folder: Path) -> Checkpoint | str:
    try:
        return load_checkpoint(str(folder))
    except (BadCheckpoint, NonFinite) as refusal:
        return str(refusal)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(data=st.data())
def test_no_damage_goes_unseen(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path, data: st.DataObject
) -> None:
    """Any one byte changed, or any cut: one line of refusal, another digest, or (padding) the same weights."""
    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(folder, build(replace(MAMBA, n_layers=1)))
    shutil.copy(tokenizer_file, folder / "tokenizer.json")
    before = load_checkpoint(str(folder))
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    at = data.draw(st.one_of(st.integers(0, header - 1), st.integers(header, len(content) - 1)))
    if data.draw(st.booleans()):
        content = content[:at]
    else:
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    after = load_or_refusal(folder)
    if isinstance(after, str):
        assert "\n" not in after
    elif after.digest == before.digest:
        weights = after.model.state_dict()
        assert all(torch.equal(weights[name], weight) for name, weight in before.model.state_dict().items())


# --- names ----------------------------------------------------------------------------------------


@pytest.fixture
def zoo(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of one model, mamba-tiny, and a folder that is none."""
    folder = make(folder="zoo/mamba-tiny").parent
    (folder / "notes").mkdir()
    monkeypatch.setattr(checkpoint, "_zoo", lambda: folder)
    return folder


def test_a_bundled_name_wins_over_a_folder(
    zoo: Path, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make(MAMBA2, folder="mamba-tiny")
    monkeypatch.chdir(other.parent)
    assert bundled_names() == ("mamba-tiny",)
    assert load_checkpoint("mamba-tiny").config == MAMBA
    assert load_checkpoint("./mamba-tiny").config == MAMBA2


@pytest.mark.parametrize("name", ["mamba-tiyn", "", "x" * 300, "a\0b"])
def test_an_unknown_name_tells_the_known_ones(zoo: Path, name: str) -> None:
    with pytest.raises(UnknownName) as error:
        load_checkpoint(name)
    assert_one_line(error, f"no model named {name!r}", "Known: mamba-tiny")
    assert ("Did you mean 'mamba-tiny'?" in str(error.value)) is (name == "mamba-tiyn")


@pytest.mark.parametrize("name", ["/no/such/folder", "./no/such", "a/b/c", "../x", "~nosuchuser/x", "d\\x", "~/no"])
def test_a_path_that_leads_nowhere_is_no_misspelt_name(zoo: Path, name: str) -> None:
    with pytest.raises(BadCheckpoint) as error:
        load_checkpoint(name)
    assert_one_line(error, "no folder", Path(name).name.split("\\")[-1], "a bundled name or a hub name, org/name")


@pytest.mark.parametrize(("file", "says"), [("config.json", "name the folder, "), ("notes.txt", "a model is a folder")])
def test_a_file_in_place_of_its_folder_is_said(make: Callable[..., Path], file: str, says: str) -> None:
    folder = make()
    (folder / "notes.txt").touch()
    with pytest.raises(BadCheckpoint) as error:
        load_checkpoint(str(folder / file))
    assert_one_line(error, f"{folder / file} is a file, not a folder: {says}")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_what_wrapped_a_model_when_it_was_saved_changes_nothing(make: Callable[..., Path], prefix: str) -> None:
    plain, wrapped = make(folder="plain"), make(folder="wrapped")
    rewrite(wrapped, lambda weights: _rename(weights, lambda name: prefix + name))
    assert load_checkpoint(str(wrapped)).digest == load_checkpoint(str(plain)).digest


def test_a_prefix_that_only_some_names_have_stays_and_is_said(make: Callable[..., Path]) -> None:
    folder = make()
    rewrite(folder, lambda weights: _rename(weights, lambda name: name if name == EMBEDDING else f"module.{name}"))
    with pytest.raises(BadCheckpoint) as error:
        load_checkpoint(str(folder))
    assert_one_line(
        error, "holds no backbone.layers.0, but backbone.embedding.weight, module.", "without the prefix module."
    )


def _rename(weights: dict[str, Tensor], change: Callable[[str], str]) -> None:
    for name in list(weights):
        weights[change(name)] = weights.pop(name)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_pointer_of_git_lfs_is_told_from_a_broken_file(make: Callable[..., Path], file: str) -> None:
    folder = make()
    (folder / file).write_bytes(POINTER)
    with pytest.raises(BadCheckpoint) as error:
        load_checkpoint(str(folder))
    assert_one_line(error, f"{folder / file} is a git-lfs pointer", "git lfs pull")


def test_every_bundled_model_loads() -> None:
    for name in bundled_names():
        loaded = load_checkpoint(name)
        assert loaded.name == name
        assert loaded.model(torch.tensor([loaded.tokenizer.encode("k1 v2 <ask> k1")]))[0].isfinite().all()
