"""Real files in every layout: written by transformers, and by hand as state-spaces publishes them.

transformers loads the same weights itself, in float32, and is held against our model in float64. Its error there is
that of rounding, and so is ours: within a factor of two of each other. A difference of function would be theirs alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

from quambench.core.errors import BadCheckpoint
from quambench.models.checkpoint import Checkpoint, load_checkpoint

ROWS = 264
TOKENS = torch.randint(257, (5, 29), generator=torch.Generator().manual_seed(1))
COMMON = {"vocab_size": ROWS, "hidden_size": 24, "state_size": 6, "num_hidden_layers": 2}
MAMBA2 = COMMON | {"head_dim": 4, "num_heads": 12, "n_groups": 2, "chunk_size": 8}
ENDS = {"tied": True, "untied": False}

Same = Callable[[Path, Any], Checkpoint]


def mamba(tied: bool) -> Any:
    return MambaForCausalLM(MambaConfig(**COMMON, tie_word_embeddings=tied)).eval()


def mamba2(tied: bool) -> Any:
    return Mamba2ForCausalLM(Mamba2Config(**MAMBA2, tie_word_embeddings=tied)).eval()


@pytest.fixture(params=[mamba, mamba2], ids=["mamba", "mamba2"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=ENDS.values(), ids=ENDS.keys())
def theirs(request: pytest.FixtureRequest, kind: Any, randomize: Callable[..., None]) -> Any:
    model = kind(request.param)
    randomize(model, seed=7)
    return model


@pytest.fixture
def same(typical_error: Callable[[Tensor, Tensor], float], tokenizer_file: Path) -> Same:
    """Asserts that the folder is this model; returns what was loaded."""

    def check(folder: Path, model: Any) -> Checkpoint:
        shutil.copy(tokenizer_file, folder / "tokenizer.json")
        loaded = load_checkpoint(str(folder))
        with torch.inference_mode():
            other = model(TOKENS, use_cache=False).logits
            ours = loaded.model(TOKENS)[0]
            exact = load_checkpoint(str(folder)).model.double()(TOKENS)[0]
        error, its = typical_error(ours, exact), typical_error(other, exact)
        assert 0.5 <= error / its <= 2, f"our error {error:.2e}, transformers' {its:.2e}"
        return loaded

    return check


def as_state_spaces(model: Any, folder: Path, write: Callable[[dict[str, Tensor], Path], object]) -> None:
    """config.json and names as in state-spaces' own folders; a tied head is in their files too."""
    folder.mkdir()
    c, weights = model.config, dict(model.state_dict())
    weights["backbone.embedding.weight"] = weights.pop("backbone.embeddings.weight")
    ssm = {"d_state": c.state_size}
    if c.model_type == "mamba2":
        ssm |= {"layer": "Mamba2", "headdim": c.head_dim, "ngroups": c.n_groups, "chunk_size": c.chunk_size}
    raw = {"d_model": c.hidden_size, "d_intermediate": 0, "n_layer": c.num_hidden_layers, "vocab_size": ROWS - 7,
           "ssm_cfg": ssm, "attn_layer_idx": [], "attn_cfg": {}, "rms_norm": True, "residual_in_fp32": True,
           "fused_add_norm": True, "pad_vocab_size_multiple": 8, "tie_embeddings": c.tie_word_embeddings}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(raw))
    write(weights, folder)


def torch_file(weights: dict[str, Tensor], folder: Path) -> None:
    torch.save(weights, folder / "pytorch_model.bin")


def old_torch_file(weights: dict[str, Tensor], folder: Path) -> None:
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def safetensors_file(weights: dict[str, Tensor], folder: Path) -> None:
    save_file({name: t.clone() for name, t in weights.items()}, folder / "model.safetensors")


def torch_shards(weights: dict[str, Tensor], folder: Path) -> None:
    names = {}
    for i, part in enumerate((sorted(weights)[::2], sorted(weights)[1::2]), 1):
        file = f"pytorch_model-0000{i}-of-00002.bin"
        torch.save({name: weights[name].clone() for name in part}, folder / file)
        names |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def test_as_transformers_saves_it(same: Same, theirs: Any, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    loaded = same(tmp_path, theirs)
    assert loaded.config.tie_embeddings is theirs.config.tie_word_embeddings
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not loaded.config.tie_embeddings


def test_as_transformers_saves_it_in_shards(same: Same, theirs: Any, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    assert same(tmp_path / "shards", theirs).digest == same(tmp_path / "whole", theirs).digest


@pytest.mark.parametrize(
    "write", [torch_file, old_torch_file, safetensors_file, torch_shards], ids=lambda f: f.__name__
)
def test_as_state_spaces_publishes_it(same: Same, theirs: Any, tmp_path: Path, write: Any) -> None:
    """Names, padding of the vocabulary, and all ways to store it; digests do not tell them apart."""
    theirs.save_pretrained(tmp_path / "other")
    as_state_spaces(theirs, tmp_path / "model", write)
    loaded = same(tmp_path / "model", theirs)
    assert loaded.config.vocab_size == ROWS
    assert loaded.digest == same(tmp_path / "other", theirs).digest


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_files(same: Same, theirs: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    theirs.to(dtype).save_pretrained(tmp_path / "other")
    assert {t.dtype for t in load_file(tmp_path / "other" / "model.safetensors").values()} == {dtype}
    as_state_spaces(theirs, tmp_path / "model", torch_file)
    wide = type(theirs).from_pretrained(tmp_path / "other", dtype=torch.float32).eval()
    assert same(tmp_path / "model", wide).digest == same(tmp_path / "other", wide).digest


def test_keys_of_state_spaces_beside_a_model_type(same: Same, theirs: Any, tmp_path: Path) -> None:
    as_state_spaces(theirs, tmp_path / "model", torch_file)
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": theirs.config.model_type}))
    same(tmp_path / "model", theirs)


def test_another_function_is_noticed(same: Same, theirs: Any, tmp_path: Path) -> None:
    """The twin: ε of the norms, which no tensor's shape depends on."""
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layer_norm_epsilon": 1e-3}))
    with pytest.raises(AssertionError, match="transformers'"):
        same(tmp_path, theirs)


def test_a_head_of_another_shape_in_a_tied_file(theirs: Any, tmp_path: Path, tokenizer_file: Path) -> None:
    def cut(weights: dict[str, Tensor], folder: Path) -> None:
        torch_file(weights | {"lm_head.weight": weights["backbone.embedding.weight"][:-1]}, folder)

    theirs.config.tie_word_embeddings = True
    as_state_spaces(theirs, tmp_path / "model", cut)
    shutil.copy(tokenizer_file, tmp_path / "model" / "tokenizer.json")
    with pytest.raises(BadCheckpoint, match="differs from the embedding"):
        load_checkpoint(str(tmp_path / "model"))


def test_views_and_strides_of_a_torch_file(same: Same, theirs: Any, tmp_path: Path) -> None:
    """Parts of wider tensors, and transposed ones, as torch.save keeps them."""

    def strided(weights: dict[str, Tensor], folder: Path) -> None:
        wide = {n: torch.cat([t, t], dim=-1)[..., : t.shape[-1]] if t.ndim else t for n, t in weights.items()}
        turned = {n: t.T.contiguous().T if t.ndim == 2 and "in_proj" in n else t for n, t in wide.items()}
        assert not all(t.is_contiguous() for t in turned.values())
        torch.save(turned, folder / "pytorch_model.bin")

    as_state_spaces(theirs, tmp_path / "model", strided)
    same(tmp_path / "model", theirs)
