"""The contract that every operation of quambench_kernels meets, whatever it computes.

Arguments are those of the operators' probes. What an operation computes is judged in tests/kernels/test_<operation>.py,
by every implementation; its schema and its fake result in tests/kernels/test_library.py.
"""

from __future__ import annotations

import inspect
import pkgutil
from importlib import import_module
from itertools import count
from pathlib import Path

import pytest
import quambench_kernels
import torch
from quambench_kernels import dispatch
from quambench_kernels.checks import Checks
from torch import Tensor

from quambench.gate.probes.operators import QUESTIONS

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
PACKAGES = {p.name: import_module(f"quambench_kernels.{p.name}")
            for p in pkgutil.iter_modules(quambench_kernels.__path__) if p.ispkg}  # fmt: skip
# What takes an implementation's name is an operation; the rest are helpers.
PUBLIC = {name: function for package in PACKAGES.values() for name in package.__all__
          if "impl" in inspect.signature(function := getattr(package, name)).parameters}  # fmt: skip
CALLS = 3  # that are tried of an operation


class Recorder:
    """Stands for an implementation that probes ask, and keeps the arguments of the first few calls of each function."""

    def __init__(self, op):
        self.op, self.name, self.device, self.every, self.calls = op, "reference", "cpu", 1, {}

    def sizes(self, sizes):
        return sizes

    def computes(self, dtype):
        return True

    def __call__(self, run, *args, **named):
        known = self.calls.setdefault(getattr(run, "__name__", ""), {})
        given = inspect.signature(run).bind(*args, **named).arguments
        shapes = [tuple(v.shape) if isinstance(v, Tensor) else None for v in given.values()]
        if len(known) < CALLS and all(0 not in s and max(s, default=0) < 99 for s in shapes if s):
            known.setdefault(tuple(s is not None for s in shapes), given)
        return run(*args, **named, impl="auto") if "impl" in inspect.signature(run).parameters else run(*args, **named)


@pytest.fixture(scope="module")
def calls():
    """Operation -> arguments by name, of calls that differ in which tensors are given."""
    found = {}
    for op in (op for op in QUESTIONS if not op.endswith(".finish")):  # which no caller sees
        recorder = Recorder(op)
        with torch.no_grad():
            QUESTIONS[op](recorder)
        found |= {name: list(known.values()) for name, known in recorder.calls.items()}
    return found


def results(found):
    return found if isinstance(found, tuple) else (found,)


def refusal(function, arguments):
    """Return the exception that a call raises, or None."""
    try:
        function(**arguments)
    except Exception as error:
        return error
    return None


def is_plain(name, error):
    """Whether it is one line that begins with the operation's name."""
    return isinstance(error, ValueError) and str(error).startswith(f"{name}: ") and "\n" not in str(error)


def check_its_signature(name, function):
    impl = inspect.signature(function).parameters["impl"]
    assert (impl.kind, impl.default) == (impl.KEYWORD_ONLY, "auto"), f'{name}: end the arguments with *, impl="auto"'
    assert (function.__doc__ or "").strip(), f"{name}: say in a docstring what it takes, returns and raises"


def check_it_stands_in_the_library(name, function):
    there = name in dir(torch.ops.quambench)
    assert there, f"{name}: register what the function calls under @operator, so that torch.compile sees one node"


def check_its_implementations(op):
    """The reference runs everywhere, and is the last that "auto" takes."""
    known = dispatch.implementations(op)
    assert "reference" in known, f'{op}: register(OP, "reference", ...) in op.py; it says what the others must mean'
    assert known[-1] == "reference", f'{op}: register "reference" last, so that "auto" prefers the others (got {known})'
    why_not = dispatch.obstacle(op, "reference", CPU) or ""
    assert not why_not, f"{op}: let the reference run on every CPU, without conditions (it {why_not})"


def check_it_has_tests_and_a_row(op, root=ROOT):
    """An operation of a package shares its file."""
    tests = [path.stem for path in sorted((root / "tests/kernels").glob("test_*.py")) if f'"{op}"' in path.read_text()]
    assert tests, f"{op}: judge it in tests/kernels/test_{op}.py, every implementation against an oracle of its own"
    row = f"`{op}`" in (root / "kernels/README.md").read_text()
    assert row, f"{op}: give it a row in kernels/README.md"


def check_it_is_asked(name, calls):
    asked = calls.get(name)
    assert asked, f"{name}: ask it in QUESTIONS of quambench/gate/probes/operators.py, so that a change of it is named"


def check_wrong_types_are_refused(name, function, arguments):
    """No operation takes complex numbers, nor a tensor of another rank than the one that it says."""
    for key, value in arguments.items():
        if isinstance(value, Tensor):
            error = refusal(function, arguments | {key: value.to(torch.complex64)})
            assert is_plain(name, error), (
                f"{name}: refuse {key} of a dtype that it cannot have, by Checks (got {type(error).__name__})"
            )


def check_wrong_shapes_are_refused(name, function, arguments):
    """One size is another, there is an axis more, or nothing: it is refused in one line, or the reference takes it too.

    The reference comes first, since PyTorch sees what C++ would read beyond.
    """
    for key, value in arguments.items():
        for other in reshaped(value) if isinstance(value, Tensor) else ():
            for impl in ("reference", "auto"):
                error = refusal(function, arguments | {key: other, "impl": impl})
                assert error is None or is_plain(name, error), (
                    f"{name}: refuse {key} of shape {tuple(other.shape)} beside the others, by Checks"
                    f" (got {type(error).__name__})"
                )


def reshaped(value):
    """One more and one fewer along each axis, an axis more, and no value at all."""
    longer = [torch.cat([value, value.narrow(axis, 0, 1)], axis) for axis in range(value.ndim)]
    shorter = [value.narrow(axis, 0, size - 1) for axis, size in enumerate(value.shape)]
    return [*longer, *shorter, value[None], value.new_empty(0)]


def check_settings_out_of_range_are_refused(name, function, arguments):
    """q_max and implementations that do not exist."""
    wrong = {"impl": ["no_such", "", "Reference"]}
    wrong |= {"q_max": [0, -1, 128]} if "q_max" in inspect.signature(function).parameters else {}
    for key, values in wrong.items():
        for value in values:
            error = refusal(function, arguments | {key: value})
            assert error is not None, f"{name}: refuse {key}={value!r}"
            assert str(error).count("\n") == 0 and isinstance(error, ValueError), (
                f"{name}: refuse {key}={value!r} in one line, by Checks or by resolve (got {type(error).__name__})"
            )


def check_arguments_are_left_alone(name, function, arguments):
    """By every implementation that can run here; and none returns a part of them."""
    before = {key: value.clone() for key, value in arguments.items() if isinstance(value, Tensor)}
    for impl in able(name):
        found = results(function(**arguments, impl=impl))
        for key, kept in before.items():
            assert torch.equal(arguments[key], kept), f"{name}: let {impl} copy {key} before it writes"
            shared = any(y.untyped_storage().data_ptr() == arguments[key].untyped_storage().data_ptr() for y in found)
            assert not shared, f"{name}: let {impl} return memory of its own, not that of {key}"


def check_twice_is_the_same(name, function, arguments):
    """To the bit: an implementation neither draws nor reads what it has not written."""
    for impl in able(name):
        one, other = (results(function(**arguments, impl=impl)) for _ in range(2))
        same = all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert same, f"{name}: let {impl} give equal bits for equal arguments; it may read what it has not written"


def check_it_gives_what_the_reference_gives(name, function, arguments):
    """Shapes and dtypes; the values are judged in tests/kernels."""
    wanted = [(y.shape, y.dtype) for y in results(function(**arguments, impl="reference"))]
    for impl in able(name):
        got = [(y.shape, y.dtype) for y in results(function(**arguments, impl=impl))]
        assert got == wanted, f"{name}: let {impl} return the reference's shapes and dtypes, {wanted} (got {got})"


def able(name):
    """Implementations that can run in this process; those of a package share its name."""
    op = name if dispatch.implementations(name) else next(p for p, m in PACKAGES.items() if name in m.__all__)
    return [impl for impl in dispatch.implementations(op) if dispatch.obstacle(op, impl, CPU, torch.float32) is None]


OF_ITSELF = [check_its_signature, check_it_stands_in_the_library]
OF_AN_OPERATION = [check_its_implementations, check_it_has_tests_and_a_row]
OF_A_CALL = [
    check_wrong_types_are_refused,
    check_wrong_shapes_are_refused,
    check_settings_out_of_range_are_refused,
    check_arguments_are_left_alone,
    check_twice_is_the_same,
    check_it_gives_what_the_reference_gives,
]


@pytest.mark.parametrize("rule", OF_ITSELF, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("name", PUBLIC)
def test_contract(name, rule):
    rule(name, PUBLIC[name])


@pytest.mark.parametrize("rule", OF_AN_OPERATION, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("op", [op for op in dispatch.operations() if "." not in op])  # a dot: a step of another
def test_contract_of_an_operation(op, rule):
    rule(op)


@pytest.mark.parametrize("name", PUBLIC)
def test_it_is_asked(name, calls):
    check_it_is_asked(name, calls)


@pytest.mark.parametrize("rule", OF_A_CALL, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("name", PUBLIC)
def test_contract_of_a_call(name, rule, calls):
    for arguments in calls[name]:
        rule(name, PUBLIC[name], arguments)


# Faults, one for each rule


def sound(x, scale, *, q_max=127, impl="auto"):
    """x (n,) float32, scale () float32: refuses what is wrong with them."""
    check = Checks("mine")
    check.dtype("x", x, torch.float32)
    check.shape("x", x, None)
    check.scale("scale", scale, None)
    check.q_max(q_max)
    if impl not in ("auto", "reference"):
        check.refuse(f"no implementation named {impl!r}")
    return x * scale


def positional(x, scale, impl="auto"):
    """Multiply."""


def unexplained(x, scale, *, impl="auto"):
    return x * scale


def unchecked(x, scale, *, q_max=127, impl="auto"):
    """Multiply whatever comes."""
    return x * scale


def refuses_at_length(x, scale, *, q_max=127, impl="auto"):
    """Refuse in two lines."""
    raise ValueError(f"mine: {x}\n{scale}")


@pytest.fixture
def given():
    return {"x": torch.ones(3), "scale": torch.tensor(2.0)}


@pytest.mark.parametrize(
    ("fault", "caught_by", "says"),
    [
        (positional, check_its_signature, 'end the arguments with *, impl="auto"'),
        (unexplained, check_its_signature, "say in a docstring"),
        (sound, check_it_stands_in_the_library, "under @operator"),
        (unchecked, check_wrong_types_are_refused, "refuse x of a dtype that it cannot have, by Checks (got NoneType)"),
        (refuses_at_length, check_wrong_types_are_refused, "by Checks (got ValueError)"),
        (unchecked, check_wrong_shapes_are_refused, "refuse x of shape (4,) beside the others"),
        (unchecked, check_settings_out_of_range_are_refused, "refuse impl='no_such'"),
        (refuses_at_length, check_settings_out_of_range_are_refused, "refuse impl='no_such' in one line"),
    ],
)
def test_the_contract_catches(fault, caught_by, says, given, rejected):
    arguments = (given | {"scale": torch.ones(3)},) if caught_by is check_wrong_shapes_are_refused else (given,)
    with rejected(says):
        caught_by("mine", fault, *(arguments if caught_by in OF_A_CALL else ()))


@pytest.mark.parametrize("rule", OF_A_CALL[:3], ids=lambda rule: rule.__name__)
def test_an_operation_that_refuses_passes(rule, given):
    rule("mine", sound, given)


TURNS = count()
IMPLEMENTATIONS = {  # what stands in the place of an implementation: what the check says
    "writes": (
        "hadamard_quantize",
        lambda run, x, *rest: run(x.add_(1), *rest),
        check_arguments_are_left_alone,
        "copy x before it writes",
    ),
    "shares": (
        "hadamard_quantize",
        lambda run, x, *rest: x.view(torch.int8),
        check_arguments_are_left_alone,
        "return memory of its own, not that of x",
    ),
    "alternates": (
        "hadamard_quantize",
        lambda run, *args: run(*args) + next(TURNS) % 2,
        check_twice_is_the_same,
        "give equal bits for equal arguments",
    ),
    "in double": (
        "ssd",
        lambda run, *args: tuple(y.double() for y in run(*args)),
        check_it_gives_what_the_reference_gives,
        "let chunked return the reference's shapes and dtypes",
    ),
}


@pytest.mark.parametrize("fault", IMPLEMENTATIONS)
def test_the_contract_catches_an_implementation(fault, calls, rejected):
    name, wrapper, caught_by, says = IMPLEMENTATIONS[fault]
    arguments = {key: v.clone() if isinstance(v, Tensor) else v for key, v in calls[name][0].items()}
    only = "chunked" if name == "ssd" else ""
    with dispatch.around(name, wrapper, only), rejected(says):
        caught_by(name, PUBLIC[name], arguments)


@pytest.mark.parametrize(
    ("known", "why_not", "says"),
    [
        (["native"], None, 'register(OP, "reference", ...)'),
        (["reference", "native"], None, 'register "reference" last'),
        (["native", "reference"], "runs on cuda, not on cpu", "let the reference run on every CPU"),
    ],
)
def test_the_contract_catches_a_registration(known, why_not, says, monkeypatch, rejected):
    monkeypatch.setattr(dispatch, "implementations", lambda op: known)
    monkeypatch.setattr(dispatch, "obstacle", lambda *args: why_not)
    with rejected(says):
        check_its_implementations("mine")


def test_the_contract_catches_what_nobody_asks_or_tests(tmp_path, rejected):
    for folder in ("tests/kernels", "kernels"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "kernels/README.md").write_text("Kernels\n")
    with rejected("ask it in QUESTIONS"):
        check_it_is_asked("mine", {})
    with rejected("judge it in tests/kernels/test_mine.py"):
        check_it_has_tests_and_a_row("mine", tmp_path)
    (tmp_path / "tests/kernels/test_mine.py").write_text('OP = "mine"\n')
    with rejected("give it a row in kernels/README.md"):
        check_it_has_tests_and_a_row("mine", tmp_path)
