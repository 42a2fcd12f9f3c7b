"""Every operation stands in torch.library: schema, fake result, dispatch, torch.compile and torch.export agree.

What the operations are called with is recorded from the probes of INT8 operators and from both float models.
"""

import pytest
import torch
from quambench_kernels import dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from quambench.gate.probes import kernels
from quambench.models import ModelConfig, build

OPERATIONS = {
    "add_rms_norm_quantize", "causal_conv1d", "gated_rms_norm_quantize", "hadamard_quantize", "int8_causal_conv1d",
    "int8_causal_conv1d_walking", "int8_embedding", "int8_linear", "int8_selective_scan", "int8_ssd",
    "rms_norm_quantize", "selective_scan", "ssd",
}  # fmt: skip


class Recorded(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "quambench":
            name = func.name().split("::")[1]
            self.calls.setdefault((name, len([a for a in args if a is None])), (func, args))
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def calls():
    from quambench_kernels.int8_causal_conv1d import int8_causal_conv1d_walking

    with torch.inference_mode(False), torch.no_grad(), Recorded() as recorded:
        for probe in kernels.probes():
            probe.ask(None)
        for architecture in ("mamba", "mamba2"):
            sizes = dict(d_state=8, head_dim=8) if architecture == "mamba2" else dict(d_state=4, dt_rank=2)
            model = build(ModelConfig(architecture=architecture, d_model=16, n_layers=1, vocab_size=32, **sizes))
            model(torch.arange(5)[None])
        q, one = torch.arange(16).to(torch.int8).view(1, 4, 4), torch.tensor(1.0)
        int8_causal_conv1d_walking(
            q, one, torch.ones(4, 2), None, q[:, :1], torch.tensor([[1, 1]]), torch.tensor([[[2], [2]]]),
            torch.ones(1, 2, 1),
        )  # fmt: skip
    return recorded.calls


def test_all_operations_were_called(calls):
    called = {name for name, _ in calls}
    assert not called - OPERATIONS, f"write {called - OPERATIONS} into OPERATIONS above, so that they are judged here"
    assert not OPERATIONS - called, f"call {OPERATIONS - called} in a probe, in quambench/gate/probes/operators.py"


def by_each(name, args):
    """The arguments with every implementation's name that runs here, and in float64 where those are floats."""
    entries = dispatch._known["rms_norm_quantize" if name.endswith("rms_norm_quantize") else name]
    for impl, entry in entries.items():
        if entry.obstacle("cpu", None) is None:
            yield (*args[:-1], impl)
    if not name.startswith("int8") and "quantize" not in name:  # else scales are float32 whatever the rest is
        yield tuple(a.detach().double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args)


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_schema_and_fake_result_are_true(calls, name):
    """Shapes, dtypes and strides of the fake results too, whichever implementation makes the real ones."""
    for (op, _), (func, args) in calls.items():
        for these in by_each(name, args) if op == name else ():
            torch.library.opcheck(func, these, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_is_one_node_under_compile_and_export(calls, name):
    func, args = next(call for (op, _), call in calls.items() if op == name)

    class Called(torch.nn.Module):
        def forward(self, *tensors):
            return func(*rest(tensors, args))

    torch.compiler.reset()  # one recompilation limit serves all classes of this name
    tensors = tuple(a.detach() for a in args if isinstance(a, torch.Tensor))
    want = func(*args)
    got = torch.compile(Called(), fullgraph=True, backend="aot_eager")(*tensors)
    exported = torch.export.export(Called(), tensors).module()(*tensors)
    for result in (got, exported):
        torch.testing.assert_close(result, want, rtol=0, atol=0)


def rest(tensors, args):
    """args with these tensors in the places of theirs."""
    left = iter(tensors)
    return [next(left) if isinstance(a, torch.Tensor) else a for a in args]


def test_a_fake_result_of_another_shape_is_noticed():
    library = torch.library.Library("quambench_test", "FRAGMENT")
    library.define("doubled(Tensor x) -> Tensor")
    library.impl("doubled", lambda x: x * 2, "CompositeExplicitAutograd")
    torch.library.register_fake("quambench_test::doubled", lambda x: x.new_empty(1), lib=library)
    with pytest.raises(Exception, match=r"shape|mismatch|Shape"):
        torch.library.opcheck(torch.ops.quambench_test.doubled.default, (torch.ones(3),), test_utils="test_faketensor")
