"""int8_linear is exact, in every implementation, or refuses; there are no tolerances here."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quambench_kernels import dispatch
from quambench_kernels.dispatch import UnavailableError, chosen, implementations, register, resolve
from quambench_kernels.int8_linear import cpu, int8_linear
from quambench_kernels.int8_linear.op import MAX_K
from quambench_kernels.int8_linear.reference import int8_linear_ref

CPU = torch.device("cpu")
IMPLEMENTATIONS = [
    "auto",
    *(n for n in implementations("int8_linear") if "cpu" in dispatch._known["int8_linear"][n].devices),
]


@pytest.fixture(params=IMPLEMENTATIONS)
def impl(request):
    if request.param == "int_mm" and cpu.why_not_int_mm():
        pytest.skip(cpu.why_not_int_mm())
    return request.param


@pytest.fixture
def fresh_record(monkeypatch):
    """A registry and record of their own, so that tests neither see nor change the process's."""
    monkeypatch.setattr(dispatch, "_ran", {})
    monkeypatch.setattr(dispatch, "_known", {op: dict(entries) for op, entries in dispatch._known.items()})
    monkeypatch.setattr(dispatch, "_able", {})


def oracle(x, w):
    """The definition in int64, which shares no code with any implementation."""
    return x.long() @ w.long().t()


def assert_exact(got, x, w):
    assert got.dtype == torch.int32
    assert torch.equal(got.long(), oracle(x, w))


def fill(kind, shape, generator):
    ends = torch.tensor([-128, 127], dtype=torch.int8)
    if kind == "ends":
        return ends[torch.randint(2, shape, generator=generator)]
    if kind == "any":
        return torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)
    return torch.full(shape, kind, dtype=torch.int8)


def strided(kind, rows, k, layout, generator):
    """(rows, k) int8 as a caller may hold it: whole, a slice of something wider, turned, thinned out."""
    if layout == "slice":
        return fill(kind, (rows, k + 7), generator)[:, 3 : 3 + k]
    if layout == "turned":
        return fill(kind, (k, rows), generator).t()
    if layout == "every second":
        return fill(kind, (rows, 2 * k), generator)[:, ::2]
    return fill(kind, (rows, k), generator)


KINDS = st.sampled_from(["any", "ends", 127, -128])


@pytest.mark.parametrize("impl_name", IMPLEMENTATIONS)
@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(0, 40),
    n=st.integers(0, 70),
    k=st.one_of(st.integers(1, 200), st.sampled_from([1023, 1024, 1025, 2049, 3000])),
    x_kind=KINDS,
    w_kind=KINDS,
    layout=st.sampled_from(["whole", "slice", "turned", "every second"]),
    seed=st.integers(0, 2**32),
)
def test_equals_the_int64_product(impl_name, m, n, k, x_kind, w_kind, layout, seed):
    if impl_name == "int_mm" and cpu.why_not_int_mm():
        pytest.skip(cpu.why_not_int_mm())
    generator = torch.Generator().manual_seed(seed)
    x, w = strided(x_kind, m, k, layout, generator), fill(w_kind, (n, k), generator)
    want = oracle(x, w)
    assert_exact(int8_linear(x, w, impl=impl_name), x, w)
    assert torch.equal(oracle(x, w), want), "an input was changed"


@pytest.mark.parametrize("m", [1, 2, 16, 65])
@pytest.mark.parametrize(("n", "k"), [(288, 144), (513, 1531)])
def test_equals_the_int64_product_at_layer_sizes(impl, m, n, k):
    generator = torch.Generator().manual_seed(m)
    x, w = fill("any", (m, k), generator), fill("ends", (n, k), generator)
    assert_exact(int8_linear(x, w, impl=impl), x, w)


def test_by_hand(impl):
    x = torch.tensor([[1, 2, 3], [-128, 0, 127]], dtype=torch.int8)
    w = torch.tensor([[1, 0, -1], [127, -128, 2]], dtype=torch.int8)
    # 1-3, 127-256+6; -128-127, -16256+254
    assert int8_linear(x, w, impl=impl).tolist() == [[-2, -123], [-255, -16002]]


@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (2, 0), (1, 2, 3)])
def test_leading_dimensions_are_kept(impl, lead):
    generator = torch.Generator().manual_seed(0)
    x, w = fill("any", (*lead, 20), generator), fill("any", (9, 20), generator)
    got = int8_linear(x, w, impl=impl)
    assert got.shape == (*lead, 9)
    assert_exact(got, x, w)


@pytest.mark.parametrize("m", [1, 18])
def test_the_longest_sum_fits(impl, m):
    """128 * 128 * MAX_K is the largest sum there is: 16,384 below 2^31."""
    x, w = torch.full((m, MAX_K), -128, dtype=torch.int8), torch.full((17, MAX_K), -128, dtype=torch.int8)
    w[1::2, 0] = 127  # so that not all sums are multiples of a high power of two
    assert (int8_linear(x, w, impl=impl)[:, 0] == 2**31 - 2**14).all()
    assert_exact(int8_linear(x, w, impl=impl), x, w)


@pytest.mark.parametrize("n", [1, 2, 64])
@pytest.mark.parametrize("k", [1, 2, 64, 100])
@pytest.mark.parametrize("m", [1, 2, 33])
def test_strides_that_mean_nothing_change_nothing(impl, m, n, k):
    """A dimension of size 1 may carry any stride; the library behind int_mm then leaves its result unwritten."""
    generator = torch.Generator().manual_seed(0)
    x, w = fill("any", (m, k), generator), fill("any", (n, k), generator)
    want = oracle(x, w)
    for stride in (0, 1, k, 3 * k):
        x_strides = (stride if m == 1 else k, stride if k == 1 else 1)
        w_strides = (stride if n == 1 else k, stride if k == 1 else 1)
        odd_x, odd_w = x.as_strided((m, k), x_strides), w.as_strided((n, k), w_strides)
        assert torch.equal(int8_linear(odd_x, odd_w, impl=impl).long(), want)
    assert torch.equal(int8_linear(x[:1].expand(m, k), w, impl=impl).long(), want[:1].expand(m, n))


BYTES = torch.zeros(4, 8, dtype=torch.int8)


@pytest.mark.parametrize(
    ("x", "w", "message"),
    [
        (BYTES.float(), BYTES, "must be int8 (got torch.float32 and torch.int8)"),
        (BYTES, BYTES.to(torch.uint8), "must be int8 (got torch.int8 and torch.uint8)"),
        (BYTES, BYTES[:, :7], "(..., K) and w_q (N, K) (got (4, 8) and (4, 7))"),
        (BYTES, BYTES[0], "(..., K) and w_q (N, K) (got (4, 8) and (8,))"),
        (BYTES[0, 0], BYTES, "(..., K) and w_q (N, K) (got () and (4, 8))"),
        (BYTES[:, :0], BYTES[:, :0], "K must be from 1 to 131071"),
        (BYTES[:, :1].expand(4, MAX_K + 1), BYTES[:, :1].expand(4, MAX_K + 1), "can overflow (got 131072)"),
        (BYTES[:, :4], BYTES.t(), "contiguous (got strides (1, 8))"),
        (BYTES, BYTES.to("meta"), "one device (got cpu and meta)"),
    ],
)
def test_refuses_in_one_line(x, w, message):
    with pytest.raises(ValueError, match=r"^int8_linear: ") as raised:
        int8_linear(x, w)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


# The probe, and what it must reject.


def saturating(x, w):
    """The byte instruction of a CPU without VNNI: unsigned x + 128, pairs of products cut at int16."""
    pad = x.shape[1] % 2
    products = (x.int() + 128)[:, None] * w.int()
    products = torch.nn.functional.pad(products, (0, pad)).unflatten(-1, (-1, 2)).sum(-1)
    return (products.clamp(-(2**15), 2**15 - 1).sum(-1) - 128 * w.int().sum(-1)).int()


def one_float32_product(x, w):
    return (x.float() @ w.float().t()).to(torch.int32)


BROKEN = {
    "saturating": saturating,
    "saturating, one row only": lambda x, w: (saturating if len(x) == 1 else int8_linear_ref)(x, w),
    "saturating, many rows only": lambda x, w: (saturating if len(x) > 8 else int8_linear_ref)(x, w),
    "float32 without chunks": one_float32_product,
    "-128 taken for -127": lambda x, w: int8_linear_ref(x.clamp(min=-127), w),
    "unsigned": lambda x, w: int8_linear_ref(x.abs(), w),
    "last element lost at odd K": lambda x, w: int8_linear_ref(x[:, : len(x[0]) // 2 * 2], w[:, : len(w[0]) // 2 * 2]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_probe_rejects(name):
    assert not cpu.int_mm_is_exact(BROKEN[name])


@pytest.mark.parametrize("exact", [int8_linear_ref, cpu.chunked_float32])
def test_the_probe_accepts_what_is_exact(exact):
    assert cpu.int_mm_is_exact(exact)


def test_the_planted_saturation_is_the_known_one():
    """64 products of 127 * 127 came out as 8,160 on such a CPU, not 1,032,256."""
    x = torch.full((1, 64), 127, dtype=torch.int8)
    assert saturating(x, x).item() == 8160
    assert oracle(x, x).item() == 1_032_256


def test_float32_without_chunks_fails_the_check():
    """2,049 products of 127 * 127, all odd: their sum is odd and beyond 2^24, so no float32."""
    x = torch.full((3, 2049), 127, dtype=torch.int8)
    assert_exact(int8_linear(x, x, impl="chunked_float32"), x, x)
    with pytest.raises(AssertionError):
        assert_exact(one_float32_product(x, x), x, x)


def test_chunks_are_as_long_as_float32_allows():
    top = cpu.CHUNK * 128 * 128
    assert torch.tensor([top, top - 1]).float().long().tolist() == [top, top - 1]
    assert torch.tensor([top + 1]).float().long().tolist() != [top + 1]


# Dispatch.


def test_an_unknown_name_is_refused(fresh_record):
    known = "auto, int_mm, few_rows, chunked_float32, triton, reference"
    with pytest.raises(UnavailableError, match=rf"^int8_linear: no implementation named 'vnni'. Known: {known}$"):
        int8_linear(BYTES, BYTES, impl="vnni")
    assert chosen() == {}


def test_a_named_one_that_cannot_run_is_refused(fresh_record):
    register("op", "fast", cpu.int_mm, why_not=lambda: "no such instruction")
    register("op", "slow", cpu.chunked_float32)
    with pytest.raises(UnavailableError, match=r"^op: implementation 'fast' is unavailable: no such instruction$"):
        resolve("op", "fast", CPU)
    with pytest.raises(UnavailableError, match=r"^op: implementation 'slow' is unavailable: runs on cpu, not on cuda$"):
        resolve("op", "slow", torch.device("cuda"))
    assert chosen() == {}
    assert resolve("op", "auto", CPU) is cpu.chunked_float32
    assert chosen() == {"op": "slow"}


def test_auto_prefers_the_first_and_never_takes_what_runs_only_by_name(fresh_record):
    register("op", "first", cpu.int_mm, devices=("cuda",))
    register("op", "second", cpu.chunked_float32, devices=("cuda",))
    register("op", "by name", int8_linear_ref, devices=("cuda", "cpu"), auto=lambda: False)
    assert resolve("op", "auto", torch.device("cuda")) is cpu.int_mm
    with pytest.raises(UnavailableError, match=r"no implementation for cpu \(first: runs on cuda.*by name: only"):
        resolve("op", "auto", CPU)
    assert resolve("op", "by name", CPU) is int8_linear_ref
    assert chosen() == {"op": "by name+first"}


def test_a_name_is_given_once(fresh_record):
    register("op", "one", cpu.int_mm)
    for name in ("one", "auto"):
        with pytest.raises(ValueError, match="registered"):
            register("op", name, cpu.int_mm)


def ran(rows):
    """What "auto" takes for so many rows, asked anew."""
    dispatch._ran.clear()
    dispatch._able.clear()
    int8_linear(torch.ones(rows, 64, dtype=torch.int8), torch.ones(32, 64, dtype=torch.int8))
    return chosen()["int8_linear"]


def test_the_probe_and_the_rows_decide_what_auto_runs(fresh_record, monkeypatch):
    entries = dispatch._known["int8_linear"]
    entries["few_rows"] = replace(entries["few_rows"], why_not=lambda: None)
    for faster, exact, few, many in (
        (True, True, "int_mm", "int_mm"),
        (False, True, "few_rows", "chunked_float32"),
        (True, False, "few_rows", "chunked_float32"),
    ):
        reason = None if exact else "torch._int_mm is not exact"
        entries["int_mm"] = replace(entries["int_mm"], auto=lambda f=faster: f, why_not=lambda r=reason: r)
        if few == "int_mm" and not cpu.int_mm_is_exact():
            continue  # this machine cannot run it
        assert ran(cpu.FEW) == few
        assert ran(cpu.FEW + 1) == many
    with pytest.raises(UnavailableError, match=r"'int_mm' is unavailable: torch\._int_mm is not exact"):
        int8_linear(BYTES, BYTES, impl="int_mm")
    entries["few_rows"] = replace(entries["few_rows"], why_not=lambda: "no C++ compiler")
    assert ran(1) == "chunked_float32"


def test_what_is_not_exact_is_refused(fresh_record, monkeypatch):
    cpu.why_not_int_mm.cache_clear()
    monkeypatch.setattr(cpu, "int_mm_is_exact", lambda: False)
    try:
        with pytest.raises(UnavailableError, match=r"'int_mm' is unavailable: torch\._int_mm is not exact"):
            int8_linear(BYTES, BYTES, impl="int_mm")
    finally:
        cpu.why_not_int_mm.cache_clear()


WITHOUT_VNNI = """
import torch
from quambench_kernels.dispatch import UnavailableError, chosen
from quambench_kernels.int8_linear import cpu, int8_linear

for m, k, n in ((1, 64, 64), (1, 1531, 65), (17, 33, 9), (40, 300, 64), (33, 4097, 48)):
    for x_value, w_value in ((127, 127), (127, -128), (-128, 127), (-128, -128), (None, None)):
        x, w = (torch.randint(-128, 128, s, dtype=torch.int8) if v is None else torch.full(s, v, dtype=torch.int8)
                for v, s in ((x_value, (m, k)), (w_value, (n, k))))
        assert torch.equal(int8_linear(x, w).long(), x.long() @ w.long().t()), (m, k, n, x_value, w_value)
ran = chosen()["int8_linear"]
wanted = cpu.int_mm_is_exact() and cpu.int_mm_is_faster()
few = [] if cpu.why_not_native() else ["few_rows"]
assert ran == ("int_mm" if wanted else "+".join(["chunked_float32", *few]))
try:
    int8_linear(x, w, impl="int_mm")
    refused = False
except UnavailableError:
    refused = True
assert refused == (not cpu.int_mm_is_exact()), "asked for by name, an inexact implementation must not run"
print(ran)
"""


def test_auto_is_exact_without_vnni():
    """A process of its own: the library reads the limit once, when it is first used."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_VNNI],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    # Which of the two is the machine's to say: the limit means nothing to one that is not x86.
    assert done.stdout.strip() in ("int_mm", "chunked_float32", "chunked_float32+few_rows")
