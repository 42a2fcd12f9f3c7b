"""Fixtures that several test files share.

Tolerances come from two rules, written once here. `assert_only_rounding` asks whether a difference
shrinks as the precision grows: rounding does, a fault does not. `assert_parity` compares with an
independent implementation, whose own rounding error is the yardstick.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from quambench_kernels import kept
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quambench.data.tokenizer import Tokenizer
from quambench.models import LanguageModel, ModelConfig, build
from quambench.models.backbone import LayerState
from quambench.models.checkpoint import load_checkpoint, save_checkpoint

BUILT = kept.cache_folder()  # of the user who runs the tests
EPS32, EPS64 = (torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64))

Pair = Callable[[torch.dtype], tuple[Tensor, Tensor]]
"""Two evaluations of what should be one function, in a given precision."""


def rms(x: Tensor) -> float:
    """Root mean square: steadier than the maximum, which rests on the luck of one value in thousands."""
    return x.double().square().mean().sqrt().item()


def typical_error(logits: Tensor, exact: Tensor) -> float:
    """Geometric mean, over tokens, of the root-mean-square error of a token's logits.

    A few tokens of a random model amplify rounding a hundredfold. They would decide a plain mean, and
    make the ratio of two errors a matter of luck; here each token counts the same. Over 800 random
    models with 100 tokens or more, two sound implementations differed by a factor of 1.2 at most.
    """
    return (logits - exact).double().square().mean(-1).sqrt().log().mean().exp().item()


# What starts programs, builds kernels or trains: right to run before a commit, and too long between two edits.
LONG = {"cli", "compare", "contract", "docs", "examples", "fuzz", "harness", "kills", "packaging", "plugin", "selftest"}
LONG |= {"claims", "kernels", "mutants", "run", "session", "zoo", "bench", "refine"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as smoke the first of each test's parameters, where it is neither slow nor of what is LONG."""
    seen, here = set(), Path(__file__).parent
    for item in items:
        if not item.path.is_relative_to(here):
            continue  # suites/ in the same run: this hook is handed all items
        folders = set(item.path.parent.relative_to(here).parts)
        test = item.path, getattr(item, "originalname", item.name)
        if test not in seen and not folders & LONG and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.smoke)
        seen.add(test)


def interpreters_own() -> dict[str, str]:
    """Variables that an interpreter reads when it starts, and a fork of one does not."""
    own = ("PYTHON", "LC_", "LANG")
    return {name: value for name, value in os.environ.items() if name.startswith(own) and name != "PYTHONPATH"}


AT_FIRST = interpreters_own()


class Warm:
    """Starts pytest in a fork of a process that has imported torch (tests/warm_python.py), as subprocess.Popen does."""

    def __init__(self) -> None:
        script = str(Path(__file__).with_name("warm_python.py"))
        self._process = subprocess.Popen([sys.executable, script], stdin=PIPE, stdout=PIPE, text=True)

    def start(self, arguments: Sequence[str], out: Path, err: Path) -> SimpleNamespace:
        """Return what pytester uses of a Popen; one is waited for before the next is started."""
        paths = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH", "")]))
        environment = {**os.environ, "PYTHONPATH": paths}
        request = {"arguments": arguments, "folder": os.getcwd(), "environment": environment, "out": str(out)}
        print(json.dumps({**request, "err": str(err)}), file=self._process.stdin, flush=True)
        return SimpleNamespace(stdin=None, wait=self._wait, kill=self._process.kill)

    def _wait(self, timeout: float | None = None) -> int:
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("pytest", timeout)
        return int(self._process.stdout.readline())

    def end(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="session")
def warm() -> Iterator[Callable[[], Warm]]:
    """Made when the first test needs it."""
    made = functools.cache(Warm)
    yield made
    if made.cache_info().currsize:
        made().end()


@pytest.fixture
def pytester(pytester: pytest.Pytester, warm, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """pytest's own; what it starts in a process of its own waits neither for torch nor for a compiler.

    pytester gives each test a home of its own, where no kernel is built yet.
    """
    monkeypatch.setenv(kept.VARIABLE, str(BUILT))
    plainly = pytester.popen

    def popen(command, stdout=PIPE, stderr=PIPE, **more):
        paths = map(Path, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        new = interpreters_own() != AT_FIRST or any((path / "sitecustomize.py").exists() for path in paths)
        if new or tuple(command[:2]) != (sys.executable, "-mpytest"):
            return plainly(command, stdout=stdout, stderr=stderr, **more)
        return warm().start(command[2:], Path(stdout.name), Path(stderr.name))

    monkeypatch.setattr(pytester, "popen", popen)
    return pytester


@pytest.fixture
def own_signals() -> Iterator[None]:
    """Ctrl-C, TERM and HUP as a new process has them: tests run under the plug-in, which has handlers of its own."""
    own = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in own.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", name="typical_error")
def _typical_error() -> Callable[[Tensor, Tensor], float]:
    return typical_error


@pytest.fixture(scope="session")
def assert_only_rounding() -> Callable[[Pair], None]:
    """Asserts that two evaluations of one function differ by rounding alone.

    From float32 to float64 a rounding difference shrinks by about EPS32 / EPS64 = 2^29, a difference
    of function not at all. The line is drawn half-way between the two in bits, 2^14.5, so neither
    the count of roundings nor the model's conditioning enters. Where float32 happens to agree better
    than one rounding per value, one rounding per value is what must shrink.
    """

    def check(pair: Pair) -> None:
        difference = {}
        for dtype in (torch.float32, torch.float64):
            one, other = pair(dtype)
            assert one.dtype == other.dtype == dtype
            assert one.shape == other.shape
            difference[dtype] = rms(one.double() - other.double())
        allowed = math.sqrt(EPS64 / EPS32) * max(difference[torch.float32], EPS32 * rms(other))
        assert difference[torch.float64] <= allowed, f"differ by {difference}, which is more than rounding"

    return check


@pytest.fixture(scope="session")
def randomize() -> Callable[[nn.Module, int], None]:
    """Fills a model, ours or transformers', with weights of large variance.

    A fresh model has D = 1, norm gains 1, zero biases and a near-zero state: faults there would hide.
    """
    centre_and_spread = {  # by the end of a parameter's name; the first that fits
        "A_log": (0.0, 0.7),
        "dt_bias": (-1.0, 1.0),
        "dt_proj.bias": (-1.0, 1.0),
        "norm.weight": (1.0, 0.3),
        "norm_f.weight": (1.0, 0.3),
        "conv1d.weight": (0.0, 0.7),
        "embedding.weight": (0.0, 1.0),
        "embeddings.weight": (0.0, 1.0),
    }

    @torch.no_grad()
    def fill(model: nn.Module, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            default = (0.0, 1.5 * parameter.shape[1] ** -0.5) if parameter.dim() == 2 else (0.3, 0.5)
            fits = (value for end, value in centre_and_spread.items() if name.endswith(end))
            centre, spread = next(fits, default)
            parameter.copy_(centre + spread * torch.randn(parameter.shape, generator=generator))

    return fill


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest byte-level tokenizer.json: 256 bytes and the start token."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    Tokenizer.train([], vocab_size=257).save(path)
    return path


Disturb = Callable[[LayerState], LayerState]


@pytest.fixture(scope="session")
def assert_decoding_is_prefill(assert_only_rounding: Callable[[Pair], None]) -> Callable[..., None]:
    """Asserts that a prefill of five tokens, then eleven at once from its state, then one by one, give
    the logits and the states of one prefill. `disturb` is what a planted fault does to each state."""

    def flat(logits: Tensor, states: list[LayerState]) -> Tensor:
        return torch.cat([logits.flatten(), *(part.flatten() for s in states for part in (s.conv, s.ssm))])

    def check(model: LanguageModel, tokens: Tensor, disturb: Disturb = lambda state: state) -> None:
        def pair(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            own = copy.deepcopy(model).to(dtype)
            state, logits = None, []
            for piece in tokens.split([5, 11] + [1] * (tokens.shape[1] - 16), dim=1):
                out, state = own(piece, state)
                state = [disturb(layer) for layer in state]
                logits.append(out)
            return flat(torch.cat(logits, dim=1), state), flat(*own(tokens))

        assert_only_rounding(pair)

    return check


@pytest.fixture(scope="session")
def assert_causal() -> Callable[..., None]:
    """Asserts that another token at position `at` changes the logits there, and before it not one bit."""

    def check(logits: Callable[[Tensor], Tensor], tokens: Tensor, at: int, other: Tensor) -> None:
        changed = tokens.clone()
        changed[:, at] = other
        before, after = logits(tokens), logits(changed)
        assert torch.equal(before[:, :at], after[:, :at])
        assert not torch.equal(before[:, at], after[:, at])

    return check


class _TorchInFloat64:
    """torch, but whoever says float32 gets float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.fixture
def assert_parity(
    assert_only_rounding: Callable[[Pair], None],
    tmp_path: Path,
    tokenizer_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Any, Any, Tensor], None]:
    """Asserts that a model of transformers and ours, loaded from its files in both layouts, agree.

    theirs, modeling, tokens: the model, the module that defines it, tokens (B, L)
    """

    def check(theirs: Any, modeling: Any, tokens: Tensor) -> None:
        theirs.eval().save_pretrained(tmp_path / "transformers")
        (tmp_path / "transformers" / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
        ours = load_checkpoint(str(tmp_path / "transformers"))

        other = tmp_path / "state-spaces"
        other.mkdir()
        weights = load_file(tmp_path / "transformers" / "model.safetensors")
        weights["backbone.embedding.weight"] = weights.pop("backbone.embeddings.weight")
        save_file(weights, other / "model.safetensors")
        (other / "config.json").write_text(json.dumps(ours.config.to_json()))
        (other / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
        twin = load_checkpoint(str(other))
        assert twin.digest == ours.digest

        with torch.inference_mode():
            ours32 = ours.model(tokens)[0]
            assert torch.equal(twin.model(tokens)[0], ours32)
            ours64 = copy.deepcopy(ours.model).double()(tokens)[0]
            theirs32 = theirs(tokens, use_cache=False).logits
            with monkeypatch.context() as patch:  # transformers casts to float32 inside, even in float64
                patch.setattr(modeling, "torch", _TorchInFloat64())
                patch.setattr(Tensor, "float", Tensor.double)
                theirs64 = theirs.double()(tokens, use_cache=False).logits

        # One function ...
        assert_only_rounding({torch.float32: (ours32, theirs32), torch.float64: (ours64, theirs64)}.__getitem__)
        # ... and as precise: our float32 error is at most twice theirs, against one and the same float64.
        error, their_error = typical_error(ours32, ours64), typical_error(theirs32, ours64)
        assert error <= 2 * their_error, f"float32 error {error:.2e}, transformers' {their_error:.2e}"

    return check


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and a corpus."""
    root = tmp_path_factory.mktemp("world")
    chooser = random.Random(0)
    nouns = ["nation", "people", "congress", "treasury", "union", "country", "labor", "commerce", "peace", "navy"]

    def sentence() -> str:
        return "The " + " of the ".join(chooser.choice(nouns) for _ in range(chooser.randint(4, 9))) + ". "

    (root / "corpus").mkdir()
    for i in range(9):
        (root / "corpus" / f"{i}.txt").write_text("".join(sentence() for _ in range(60)))
    model = root / "tiny-model"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = build(
            ModelConfig(architecture="mamba", d_model=16, n_layers=1, vocab_size=300, d_state=4, dt_rank=2)
        ).requires_grad_(False)
    mixer = made.blocks[0].mixer
    mixer.dt_proj.bias.add_(3.0)  # a state that counts
    mixer.x_proj.weight.mul_(6.0)
    save_checkpoint(model, made, torch.float32)
    texts = [f.read_text() for f in sorted((root / "corpus").iterdir())]
    Tokenizer.train(texts, 300).save(model / "tokenizer.json")
    return root
