"""Observers from outside: found by name, refused in one line, measured as if they were ours."""

from __future__ import annotations

import os
import random
import sys
from importlib.metadata import EntryPoint
from itertools import count
from pathlib import Path
from textwrap import dedent

import pytest
import torch

from quambench.calibration.collect import Task, calibrate
from quambench.case import Case
from quambench.core import plugins
from quambench.core.errors import BadParameter, NonFinite, SiteUnseen, UnknownName
from quambench.core.provenance import provenance
from quambench.data.tokenizer import Tokenizer
from quambench.int8.fuse import prepare
from quambench.models import ModelConfig, build
from quambench.models.checkpoint import save_checkpoint
from quambench.observers import ObserverSpec
from quambench.observers.outside import OBSERVER
from quambench.observers.running_max import RunningMax
from quambench.policy import POLICIES, Assignment

FAKE_MAX = """
import torch

class FakeMax:
    "Quamba's running maximum, its interface and its arithmetic: float32, floors and all."

    def __init__(self, n_bits, clip_ratio, sym):
        assert sym is True
        self.n_bits, self.clip_ratio, self.sym, self.w_max = n_bits, clip_ratio, sym, None

    def update(self, w):
        coming = w.abs().amax().clamp(min=1e-5)
        self.w_max = coming if self.w_max is None else torch.max(coming, self.w_max)

    def get_quantization_parameters(self):
        w_max = self.w_max * self.clip_ratio if self.clip_ratio < 1 else self.w_max
        scales = (w_max / (2 ** (self.n_bits - 1) - 1)).clamp(min=1e-6)
        return scales, torch.zeros_like(scales)
"""
SAYS = """
import torch

class Says:
    "Whatever it is told to."
    answer = None

    def update(self, w):
        self.seen = w

    def get_quantization_parameters(self):
        return self.answer
"""
numbers = count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """module(source): the name of a module of that source in the current directory; gone again afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugins, "_sources", {})
    made = []

    def write(source: str) -> str:
        made.append(f"quambench_fake_{next(numbers)}")
        (tmp_path / f"{made[-1]}.py").write_text(dedent(source))
        return made[-1]

    yield write
    for name in made:
        sys.modules.pop(name, None)


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# -- found ------------------------------------------------------------------------------------------


def test_quambas_interface_is_found_in_the_current_directory_and_leaves_the_path_alone(module, tmp_path):
    name = module(FAKE_MAX)
    assert str(tmp_path) not in sys.path
    before = list(sys.path)
    observer = ObserverSpec.parse(f"{name}:FakeMax").build(bits=4)
    assert sys.path == before
    observer.update(torch.tensor([[1.0, -3.5], [2.0, 0.0]]))
    assert observer.scale().item() == 0.5  # 3.5 / 7
    assert observer.scale().shape == ()


def test_the_current_directory_comes_before_what_is_installed(module, tmp_path, monkeypatch):
    name = module(FAKE_MAX)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / f"{name}.py").write_text("raise RuntimeError('the wrong one')")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    ObserverSpec.parse(f"{name}:FakeMax")


def test_a_subclass_of_observer_is_used_as_it_is(module):
    name = module("""
        from dataclasses import dataclass
        from quambench.observers.running_max import RunningMax

        @dataclass
        class Shrunk(RunningMax):
            by: float = 0.5

            def observe(self, batch):
                return self.by * super().observe(batch)
    """)
    observer = ObserverSpec.parse(f"{name}:Shrunk[by=0.25]").build()
    assert isinstance(observer, RunningMax)
    assert observer.by == 0.25
    observer.update(torch.ones(2, 3, 1))  # any granularity
    assert observer.scale().tolist() == pytest.approx([0.25 / 127] * 3, rel=torch.finfo(torch.float32).eps)


def test_an_installed_package_gives_a_name(module, monkeypatch):
    name = module(FAKE_MAX)
    ours = EntryPoint("theirs", f"{name}:FakeMax", OBSERVER.group)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [ours] if group == OBSERVER.group else [])
    monkeypatch.setattr(plugins, "installed", plugins.installed.__wrapped__)
    spec = ObserverSpec.parse("theirs[clip_ratio=0.5]")
    assert str(spec) == "theirs[clip_ratio=0.5]"
    spec.build().update(torch.ones(1, 1))
    with pytest.raises(UnknownName, match="Did you mean 'theirs'"):
        ObserverSpec.parse("their")


def test_two_packages_may_not_claim_one_name(monkeypatch):
    both = [EntryPoint("x", f"{package}:Max", OBSERVER.group) for package in ("one", "other")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: both)
    with pytest.raises(BadParameter, match="one:Max and other:Max"):
        plugins.installed.__wrapped__(OBSERVER)


# -- refused ----------------------------------------------------------------------------------------


def test_a_module_that_is_not_there(module):
    with pytest.raises(BadParameter) as error:
        ObserverSpec.parse("quambench_no_such_module:Max")
    assert "'quambench_no_such_module' cannot be imported: ModuleNotFoundError: No module" in one_line(error)


@pytest.mark.parametrize("source", ["raise OSError('no\\ngrounds')", "def f(:"])
def test_a_module_that_fails_says_why_in_one_line(module, source):
    with pytest.raises(BadParameter) as error:
        ObserverSpec.parse(f"{module(source)}:Max")
    assert ("OSError: no grounds" if "OSError" in source else "SyntaxError: invalid syntax") in one_line(error)


@pytest.mark.parametrize("written", ["", "{}:", ":{}"])
def test_half_a_name_is_refused(module, written):
    with pytest.raises((BadParameter, UnknownName)):
        ObserverSpec.parse(written.format(module(FAKE_MAX)) or ":")


def test_a_class_that_is_not_there_names_the_nearest(module):
    with pytest.raises(UnknownName, match="Did you mean 'FakeMax'"):
        ObserverSpec.parse(f"{module(FAKE_MAX)}:FakMax")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("class X:\n    def update(self, w): ...", "it lacks get_quantization_parameters"),
        ("class X: ...", "it lacks update and get_quantization_parameters"),
        ("X = 3", "must be a class (got int)"),
        (
            "from quambench.observers import Observer\nclass X(Observer): ...",
            "must give observe, or take and threshold",
        ),
    ],
)
def test_what_is_no_observer_is_told_what_one_has(module, source, says):
    with pytest.raises(BadParameter) as error:
        ObserverSpec.parse(f"{module(source)}:X")
    assert says in one_line(error)


PARAMETERS = """
class X:
    def __init__(self, alpha, n_bits=3, clip_ratio=0.5, sym=False, bins=2048, flag=False, method="mse", limit=None,
                 scale=1.0, sigma=0.25):
        if alpha > 1:
            raise ValueError("alpha\\nabove 1")
        type(self).given = dict(locals())

    def update(self, w): ...
    def get_quantization_parameters(self): ...
"""


def test_parameters_go_by_name_and_in_their_signatures_type(module):
    spec = ObserverSpec.parse(f"{module(PARAMETERS)}:X[alpha=1,bins=16,flag=1,sigma=1]")
    given = spec.build(bits=4).outside.given
    expected = {"alpha": 1, "n_bits": 4, "clip_ratio": 1.0, "sym": True, "bins": 16, "flag": True, "sigma": 1.0}
    expected |= {"method": "mse", "limit": None, "scale": 1.0}  # its own defaults: not numbers, or not free
    assert {key: given[key] for key in expected} == expected
    types = {key: type(given[key]) for key in ("bins", "flag", "sigma")}
    assert types == {"bins": int, "flag": bool, "sigma": float}


def test_the_complete_spec_tells_every_parameter_and_reads_back(module):
    name = module(PARAMETERS)
    spec = ObserverSpec.parse(f"{name}:X[alpha=0.5]")
    assert str(spec) == f"{name}:X[alpha=0.5]"
    assert str(spec.complete) == f"{name}:X[alpha=0.5,bins=2048,flag=0,sigma=0.25]"
    assert ObserverSpec.parse(str(spec.complete)).complete == spec.complete
    assert ObserverSpec.parse(f"{name}:X[alpha=0.5,bins=2048]").complete == spec.complete


def test_a_clip_ratio_of_1_is_not_told_and_another_one_is(module):
    name = module(PARAMETERS)
    assert (
        ObserverSpec.parse(f"{name}:X[alpha=0.5,clip_ratio=1]").complete
        == ObserverSpec(f"{name}:X", (("alpha", 0.5),)).complete
    )
    spec = ObserverSpec.parse(f"{name}:X[alpha=0.5,clip_ratio=0.5]")
    assert str(spec.complete) == f"{name}:X[alpha=0.5,bins=2048,clip_ratio=0.5,flag=0,sigma=0.25]"


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("alpha=0.5,clip_ratio=0", "clip_ratio must be in (0, 1] (got 0.0)"),
        ("alpha=0.5,clip_ratio=1.5", "clip_ratio must be in (0, 1] (got 1.5)"),
        ("alpha=0.5,beta=1", "no parameter 'beta'; it takes alpha, bins, flag, limit, sigma, clip_ratio"),
        ("alpha=0.5,sym=0", "no parameter 'sym'"),
        ("alpha=0.5,n_bits=4", "no parameter 'n_bits'"),
        ("alpha=0.5,method=2", "no parameter 'method'"),
        ("", "needs a value for alpha: write [alpha=number]"),
        ("alpha=2", "cannot be made: ValueError: alpha above 1"),
    ],
)
def test_a_wrong_parameter_is_one_line(module, written, says):
    with pytest.raises(BadParameter) as error:
        ObserverSpec.parse(f"{module(PARAMETERS)}:X[{written}]")
    assert says in one_line(error)


# -- what it answers --------------------------------------------------------------------------------


def said(module, answer):
    observer = ObserverSpec(f"{module(SAYS)}:Says").build()
    observer.update(torch.ones(2, 3))
    observer.inner.answer = answer
    return observer.scale()


@pytest.mark.parametrize(
    "scale", [0.25, torch.tensor(0.25), torch.tensor([0.25]), torch.tensor([[0.25]], dtype=torch.float64)]
)
@pytest.mark.parametrize("base", [0, 0.0, torch.tensor(0), torch.zeros(1, 1)])
def test_one_number_in_any_shape_is_a_scale(module, scale, base):
    found = said(module, (scale, base))
    assert found.dtype == torch.float32
    assert found.shape == ()
    assert found.item() == 0.25


def test_the_grids_floor_holds_for_everybody(module):
    assert said(module, (1e-9, 0)).item() == torch.tensor(1e-6).item()


def test_a_clip_ratio_goes_to_a_class_that_takes_one_and_scales_what_another_says(module):
    name = module(FAKE_MAX)
    batch = torch.tensor([[1.0, -3.5], [2.0, 0.0]])
    takes = ObserverSpec.parse(f"{name}:FakeMax[clip_ratio=0.25]").build(bits=4)
    assert takes.inner.clip_ratio == 0.25
    takes.update(batch)
    assert takes.scale().item() == 0.125  # once, not twice
    observer = ObserverSpec.parse(f"{module(SAYS)}:Says[clip_ratio=0.25]").build(bits=4)
    observer.update(batch)
    observer.inner.answer = (0.5, 0)
    assert observer.scale().item() == 0.125
    assert observer.grid_end().item() == 0.125 * 7


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        ((0.25, 3), BadParameter, r"base must be 0, the runtime's grid being symmetric \(got 3\)"),
        ((0.25, torch.tensor([0.0, -1.5])), BadParameter, r"\(got -1.5\)"),
        ((0.25, float("nan")), BadParameter, r"base must be 0"),
        ((torch.ones(3), 0), BadParameter, r"scales must be one number \(got shape \(3,\)\)"),
        ((0.0, 0), BadParameter, r"must be positive \(got 0\)"),
        ((-0.25, 0), BadParameter, r"must be positive \(got -0.25\)"),
        ((float("nan"), 0), NonFinite, "the scale is nan"),
        ((float("inf"), 0), NonFinite, "the scale is inf"),
        (0.25, BadParameter, r"must return \(scales, base\)"),
        (None, BadParameter, r"must return \(scales, base\)"),
        ((0.25, None), BadParameter, r"must return \(scales, base\)"),
        ((0.25, 0, 0), BadParameter, r"must return \(scales, base\)"),
    ],
)
def test_anything_else_is_refused(module, answer, error, says):
    with pytest.raises(error, match=says):
        said(module, answer)


def test_it_sees_signed_contiguous_float32_rows(module):
    observer = ObserverSpec(f"{module(SAYS)}:Says").build()
    batch = torch.randn(6, 4).T[::2]
    observer.update(batch)
    seen = observer.inner.seen
    assert torch.equal(seen, batch)
    assert seen.dtype == torch.float32
    assert seen.is_contiguous()
    assert seen.data_ptr() != batch.data_ptr()


def test_state_that_cannot_be_saved_is_refused(module):
    name = module(SAYS)
    observer = ObserverSpec(f"{name}:Says").build()
    observer.inner.history = [1.0]
    with pytest.raises(BadParameter, match="keeps history, a list"):
        observer.state_dict()


def test_numbers_and_tensors_are_saved_and_come_back_as_they_were(module):
    name = module(SAYS)
    one, other = (ObserverSpec(f"{name}:Says").build() for _ in range(2))
    one.update(torch.ones(1, 2))
    one.inner.average, one.inner.flag, one.inner.steps, one.inner.mode = 0.1, True, 3, "max"
    other.load_state_dict(one.state_dict())
    del one.inner.mode  # text is not state: the constructor gives it
    assert vars(other.inner).keys() == vars(one.inner).keys()
    assert torch.equal(other.inner.seen, one.inner.seen)
    for key in ("average", "flag", "steps"):
        assert getattr(other.inner, key) == getattr(one.inner, key)
        assert type(getattr(other.inner, key)) is type(getattr(one.inner, key))


# -- put to work ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared():
    config = ModelConfig(architecture="mamba2", d_model=16, n_layers=2, vocab_size=50, d_state=4, head_dim=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return prepare(build(config))


SEQUENCES = torch.randint(50, (7, 13), generator=torch.Generator().manual_seed(3))


def calibrated(prepared, spec, grouping="1x1"):
    plan = POLICIES["quamba"]().plan(prepared.config, spec, grouping)
    plan = {site: Assignment(spec, a.granularity) for site, a in plan.items()}
    return calibrate(prepared, SEQUENCES, {"k": Task(plan, 8)}, "model")["k"]


def test_quambas_running_maximum_equals_ours_to_the_bit(module, prepared):
    ours = calibrated(prepared, ObserverSpec("running_max"))
    theirs = calibrated(prepared, ObserverSpec.parse(f"{module(FAKE_MAX)}:FakeMax"))
    assert theirs.digest == ours.digest
    halved = calibrated(prepared, ObserverSpec.parse(f"{module(FAKE_MAX)}:FakeMax[clip_ratio=0.5]"))
    assert all(torch.equal(2 * halved.scales[site], ours.scales[site]) for site in ours.scales)


def test_a_bad_scale_names_the_site(module, prepared):
    name = module(SAYS + "\nclass Wrong(Says):\n    answer = (-1.0, 0)\n")
    with pytest.raises(BadParameter, match=r"^embedding|^layers\.0.*must be positive"):
        calibrated(prepared, ObserverSpec(f"{name}:Wrong"))


def test_the_example_of_the_documentation_works(module, prepared):
    page = (Path(__file__).parents[2] / "docs" / "quantization.md").read_text(encoding="utf-8")
    name = module(page[page.index("    # mine.py\n") : page.index("\n<!-- -->")])
    four, eight = (calibrated(prepared, ObserverSpec.parse(f"{name}:TimesMean[times={n}]")) for n in (4, 8))
    assert all(torch.equal(2 * four.scales[site], eight.scales[site]) for site in four.scales)


def test_another_granularity_is_refused(module, prepared):
    with pytest.raises(BadParameter, match="FakeMax makes one scale per tensor"):
        calibrated(prepared, ObserverSpec(f"{module(FAKE_MAX)}:FakeMax"), grouping="channel")


def test_nothing_seen_is_an_error_even_where_the_class_has_an_answer(module):
    name = module(SAYS + "\nclass Sure(Says):\n    answer = (1.0, 0)\n")
    with pytest.raises(SiteUnseen):
        ObserverSpec(f"{name}:Sure").build().scale()


def test_the_source_is_told_by_the_provenance_and_not_by_the_settings(module, tmp_path):
    name = module(FAKE_MAX)
    spec = ObserverSpec.parse(f"{name}:FakeMax")
    settings, first = Case(model="m", observer=spec).settings(), provenance()["observers"]
    assert list(first) == [str(spec)]
    del sys.modules[name]
    (tmp_path / f"{name}.py").write_text(FAKE_MAX + "\n# another version, of another length\n")
    assert Case(model="m", observer=spec).settings() == settings
    assert provenance()["observers"][str(spec)] != first[str(spec)]


def test_the_provenance_of_our_own_observers_is_as_it_was(module):
    ObserverSpec.parse("percentile")
    assert "observers" not in provenance()


# -- under pytest -----------------------------------------------------------------------------------

SUITE = """
import pytest

@pytest.mark.cases("running_max")
def test_alpha(case, judge):
    judge(case)
"""
CONFTEST = """
import dataclasses
from quambench import case
small = case.Protocol(calib_windows=4, calib_length=16, quality_windows=4, quality_length=32, decode_windows=4,
                      decode_prefix=8, decode_steps=4, error_windows=2, error_length=16, max_items=4)
case.Protocol.__init__.__kwdefaults__.update(dataclasses.asdict(small))
pytest_plugins = ["quambench.pytest_plugin"]
"""


@pytest.fixture
def gate(pytester):
    """gate(*options): `pytest suites/quality/test_alpha.py` in a fresh process, outside the project's root."""
    chooser = random.Random(0)
    words = ["nation", "people", "congress", "treasury", "union", "country", "labor", "commerce", "peace", "navy"]
    texts = ["".join(f"The {chooser.choice(words)} of the {chooser.choice(words)}. " for _ in range(150))] * 6
    corpus = pytester.mkdir("corpus")
    for i, text in enumerate(texts):
        (corpus / f"{i}.txt").write_text(f"Part {i}. {text}")
    config = ModelConfig(architecture="mamba", d_model=16, n_layers=1, vocab_size=300, d_state=4, dt_rank=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_checkpoint(pytester.path / "tiny", build(config), torch.float32)
    Tokenizer.train(texts, 300).save(pytester.path / "tiny" / "tokenizer.json")
    pytester.makeini("[pytest]")
    pytester.makeconftest(CONFTEST)
    pytester.mkdir("suites").joinpath("quality").mkdir()
    suite = pytester.path / "suites" / "quality" / "test_alpha.py"
    suite.write_text(SUITE)
    pytester.makepyfile(fake_mod=FAKE_MAX)
    os.chdir(pytester.mkdir("elsewhere"))  # the project's root is importable, wherever one stands

    def go(*options):
        fixed = ["--qb-corpus", "../corpus", "--qb-model", "../tiny", "-p", "no:cacheprovider"]
        fixed += ["--import-mode=importlib", f"--confcutdir={pytester.path}", f"--rootdir={pytester.path}"]
        console_script = Path(sys.executable).with_name("pytest")  # no folder of ours on its path
        result = pytester.run(console_script, *fixed, *options, str(suite))
        return result, "\n".join(result.outlines + result.errlines)

    return go


@pytest.mark.slow
def test_the_gate_judges_an_observer_from_outside(gate, pytester):
    result, text = gate("--qb-observer", "fake_mod:FakeMax", "--qb-new-only")
    assert result.ret == 0, text
    assert "tiny/fake_mod:FakeMax/1x1" in text
    source = pytester.path / "fake_mod.py"
    source.write_text(source.read_text().replace("w.abs()", "(4 * w).abs()"))
    result, text = gate("--qb-observer", "fake_mod:FakeMax")
    assert result.ret == 1, text
    assert "STALE" not in text  # a changed class is compared with its former self
    assert "at layers.0.x_proj:input" in text


def test_a_wrong_name_is_exit_code_4(gate):
    result, text = gate("--qb-observer", "fake_mod:FakMax")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "Did you mean 'FakeMax'" in text
    assert "Traceback" not in text
