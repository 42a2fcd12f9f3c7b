"""The float model in float16 and bfloat16, and on a device: precision, dtypes, and where tensors are made."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

from quambench.core.errors import BadParameter, NonFinite
from quambench.int8.fuse import prepare
from quambench.models import ModelConfig, backbone, build, checkpoint, mamba, mamba2
from quambench.models.checkpoint import load_checkpoint, save_checkpoint

Error = Callable[[Tensor, Tensor], float]
NARROW = [torch.bfloat16, torch.float16]
CONFIGS = {
    "mamba": ModelConfig(architecture="mamba", d_model=8, n_layers=2, vocab_size=264, d_state=3, dt_rank=2),
    "mamba2": ModelConfig(architecture="mamba2", d_model=8, n_layers=2, vocab_size=264, d_state=3, head_dim=4,
                          tie_embeddings=False),
}  # fmt: skip
TOKENS = torch.randint(264, (3, 37), generator=torch.Generator().manual_seed(1))
ALWAYS_FLOAT32 = ("A_log", ".D", "dt_bias", "dt_proj.bias")


def theirs_of(architecture: str) -> Any:
    common = {"vocab_size": 264, "hidden_size": 24, "state_size": 6, "num_hidden_layers": 3}
    if architecture == "mamba":
        return MambaForCausalLM(MambaConfig(**common))
    return Mamba2ForCausalLM(Mamba2Config(**common, head_dim=4, num_heads=12, n_groups=2, chunk_size=8))


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path, randomize: Callable[..., None]):
    """architecture -> a folder in float32, by quambench."""

    def make(architecture: str) -> Path:
        folder = tmp_path_factory.mktemp(architecture)
        model = build(CONFIGS[architecture])
        randomize(model, seed=3)
        save_checkpoint(folder, model, torch.float32)
        shutil.copy(tokenizer_file, folder / "tokenizer.json")
        return folder

    return make


@pytest.fixture(scope="module")
def compared(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path, randomize: Callable[..., None], typical_error: Error
):
    """(architecture, dtype) -> our error and transformers', in logits, of the same narrow weights."""

    def compare(architecture: str, dtype: torch.dtype) -> tuple[float, float]:
        theirs = theirs_of(architecture).eval()
        randomize(theirs, seed=5)
        theirs = theirs.to(dtype)
        folder = tmp_path_factory.mktemp("narrow")
        theirs.save_pretrained(folder)
        shutil.copy(tokenizer_file, folder / "tokenizer.json")
        with torch.inference_mode():
            exact = load_checkpoint(str(folder)).model.double()(TOKENS)[0]
            ours = load_checkpoint(str(folder), dtype=dtype).model(TOKENS)[0]
            others = theirs(TOKENS, use_cache=False).logits
        return typical_error(ours, exact), typical_error(others, exact)

    return compare


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("dtype", NARROW)
def test_as_precise_as_transformers_in_the_same_dtype(
    compared: Callable[..., tuple[float, float]], architecture: str, dtype: torch.dtype
) -> None:
    ours, others = compared(architecture, dtype)
    assert 0 < ours <= 2 * others, f"error {ours:.2e}, transformers' {others:.2e}"


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_comparison_sees_coarse_rates(
    compared: Callable[..., tuple[float, float]], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: Δ rounded to three bits more coarsely than bfloat16 has it."""
    module, scan = (mamba, "selective_scan") if architecture == "mamba" else (mamba2, "ssd")
    right = getattr(module, scan)

    def coarse(x: Tensor, dt: Tensor, *rest: Any, **named: Any) -> Any:
        low = dt.to(torch.float8_e4m3fn).to(dt.dtype) if dt.dtype == torch.bfloat16 else dt
        return right(x, low, *rest, **named)

    monkeypatch.setattr(module, scan, coarse)
    ours, others = compared(architecture, torch.bfloat16)
    assert ours > 2 * others


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("dtype", NARROW)
def test_what_stays_float32(write: Callable[..., Path], architecture: str, dtype: torch.dtype) -> None:
    folder = write(architecture)
    wide, narrow = load_checkpoint(str(folder)), load_checkpoint(str(folder), dtype=dtype)
    assert narrow.digest == wide.digest  # of what is stored
    for name, parameter in narrow.model.named_parameters():
        kept = name.endswith(ALWAYS_FLOAT32)
        stored = wide.model.get_parameter(name)
        assert parameter.dtype == (torch.float32 if kept else dtype), name
        assert torch.equal(parameter, stored if kept else stored.to(dtype)), name
    logits, states = narrow.model(TOKENS)
    assert logits.dtype == torch.float32
    assert {(s.conv.dtype, s.ssm.dtype) for s in states} == {(dtype, torch.float32)}
    assert narrow.model.hidden(TOKENS)[0].dtype == torch.float32


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("dtype", NARROW)
def test_steps_go_on_from_a_narrow_prefill(
    write: Callable[..., Path], typical_error: Error, architecture: str, dtype: torch.dtype
) -> None:
    folder = write(architecture)
    with torch.inference_mode():
        exact = load_checkpoint(str(folder)).model.double()(TOKENS)[0]
        model = load_checkpoint(str(folder), dtype=dtype).model
        whole = model(TOKENS)[0]
        state, logits = None, []
        for piece in TOKENS.split([5, 11] + [1] * 21, dim=1):
            out, state = model(piece, state)
            logits.append(out)
    error, its = typical_error(whole, exact), typical_error(torch.cat(logits, dim=1), exact)
    assert its <= 2 * error


GAIN = "backbone.norm_f.weight"


@pytest.mark.parametrize(
    ("value", "stored", "dtype", "says"),
    [
        (7e4, torch.float32, torch.float16, "does not fit float16 (70000); use bfloat16 or float32"),
        (-7e4, torch.float32, torch.float16, "does not fit float16 (-70000); use bfloat16 or float32"),
        (3.4e38, torch.float32, torch.bfloat16, "does not fit bfloat16 (3.4e+38); use float32"),  # it ends at 3.39e38
        (1e39, torch.float64, torch.float32, "does not fit float32 (1e+39)"),
        (1e39, torch.float64, torch.float16, "does not fit float16 (1e+39)"),
        (float("inf"), torch.float32, torch.float16, "holds NaN or infinity"),
        (float("nan"), torch.float64, torch.float32, "holds NaN or infinity"),
    ],
)
def test_a_weight_that_the_dtype_cannot_hold(
    write: Callable[..., Path], value: float, stored: torch.dtype, dtype: torch.dtype, says: str
) -> None:
    folder = write("mamba")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[GAIN] = tensors[GAIN].to(stored)
    tensors[GAIN][0] = value
    save_file(tensors, path)
    with pytest.raises(NonFinite) as error:
        load_checkpoint(str(folder), dtype=dtype)
    assert str(error.value) == f"{path}: {GAIN} {says}"
    if "use bfloat16" in says:
        kept = load_checkpoint(str(folder), dtype=torch.bfloat16).model.get_parameter(GAIN)
        assert kept[0] == torch.tensor(value, dtype=torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, "float16"])
def test_other_dtypes_are_refused(dtype: Any) -> None:
    with pytest.raises(BadParameter, match=r"dtype must be float32, bfloat16, float16 \(got \w+\)$"):
        load_checkpoint("mamba-tiny", dtype=dtype)


# --- devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:x", "", "meta"])
def test_no_such_kind_of_device(name: str) -> None:
    with pytest.raises(BadParameter, match=r"device must be cpu, cuda or cuda:N \(got "):
        load_checkpoint("mamba-tiny", device=name)


def test_cuda_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadParameter, match=r"there is no device cuda: torch \S+ (finds none|is built without)"):
        load_checkpoint("mamba-tiny", device="cuda")


def test_a_gpu_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(BadParameter, match=r"there is no device cuda:7: the last one is cuda:1"):
        load_checkpoint("mamba-tiny", device="cuda:7")


def test_a_device_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(shape: Any, **_: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(BadParameter, match=r"^x does not fit on cpu: no 4 GiB more are free there$"):
        checkpoint._new((1 << 30,), torch.float32, torch.device("cpu"), Path("x"))


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("prepared", [False, True], ids=["plain", "rotated"])
def test_whatever_is_made_is_made_where_the_input_is(architecture: str, prepared: bool) -> None:
    """On the meta device, which mixes with no other."""
    model = build(CONFIGS[architecture]).requires_grad_(False)
    model = (prepare(model) if prepared else model).to("meta")
    logits, state = model(TOKENS.to("meta"))
    step, _ = model(TOKENS[:, :1].to("meta"), state)
    assert {x.device.type for x in (logits, step, *(s.conv for s in state), *(s.ssm for s in state))} == {"meta"}


def test_a_tensor_made_elsewhere_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: a state that is made on the CPU whatever the model's device."""
    model = build(CONFIGS["mamba"]).requires_grad_(False).to("meta")
    elsewhere = backbone.LayerState(torch.zeros(3, 3, 16), torch.zeros(3, 16, 3))
    monkeypatch.setattr(mamba.MambaMixer, "empty_state", lambda self, batch: elsewhere)
    with pytest.raises((RuntimeError, ValueError)):
        model(TOKENS.to("meta"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, *NARROW])
def test_a_model_on_a_gpu_is_the_model(
    write: Callable[..., Path], typical_error: Error, architecture: str, dtype: torch.dtype
) -> None:
    folder = write(architecture)
    with torch.inference_mode():
        exact = load_checkpoint(str(folder)).model.double()(TOKENS)[0]
        here = load_checkpoint(str(folder), dtype=dtype).model(TOKENS)[0]
        there = load_checkpoint(str(folder), dtype=dtype, device="cuda").model
        assert all(p.device.type == "cuda" for p in there.parameters())
        logits = there(TOKENS.cuda())[0]
    floor = 1e-3 if dtype == torch.float32 else 0.0  # TF32 products in other packages' kernels, 10 bits each
    assert typical_error(logits.cpu(), exact) <= 2 * typical_error(here, exact) + floor * exact.square().mean().sqrt()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_holds_little_more_than_the_weights() -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = load_checkpoint("mamba2-tiny", device="cuda").model
    kept = sum(p.nbytes for p in model.parameters())
    assert torch.cuda.max_memory_allocated() - before <= 1.2 * kept + (4 << 20)
