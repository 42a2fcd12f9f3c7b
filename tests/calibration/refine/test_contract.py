"""What every refinement owes, and faults that these demands must notice."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from quambench.calibration.refine import REFINEMENTS, Refined, RefinementSpec, adaround, learned, training
from quambench.calibration.refine.training import HEAD, Parts, Scales, descend, trained_sites
from quambench.core.errors import BadCorpus, BadParameter
from quambench.grids.grid import MIN_SCALE
from quambench.grids.precision import Precision
from quambench.models.sites import sites_of

SMALL = "steps=8,batch=2,train=6,validation=3,length=9,piece=3,every=2,rate=0.1"
OURS = {"kl": f"learned[{SMALL}]", "nll": f"learned[loss=nll,{SMALL}]", "adaround": f"adaround[{SMALL}]"}


def few_steps(name):
    """A registered refinement with those parameters of SMALL that it has."""
    known = RefinementSpec(name).settable()
    return f"{name}[{','.join(part for part in SMALL.split(',') if part.partition('=')[0] in known)}]"


KINDS = OURS | {name: few_steps(name) for name in REFINEMENTS if name not in ("learned", "adaround")}
PIECES = (adaround, learned, training)  # modules that a fault is planted in


@pytest.fixture(params=[kind for kind in KINDS if kind != "nll"])  # which differs from kl in a line: see test_learned
def refinement(request):
    return spec(request.param)


def spec(kind, **changes):
    return dataclasses.replace(RefinementSpec.parse(KINDS[kind]).build(), **changes)


def changed(refinement, **values):
    """The refinement with other values for those of these parameters that it has."""
    known = {field.name for field in dataclasses.fields(refinement)}
    return dataclasses.replace(refinement, **{name: value for name, value in values.items() if name in known})


def plant(monkeypatch, name, fault):
    for module in PIECES:
        if hasattr(module, name):
            monkeypatch.setattr(module, name, fault)


def test_every_refinement_is_judged_here(refinement):
    assert {RefinementSpec.parse(text).name for text in KINDS.values()} == set(REFINEMENTS)
    assert changed(refinement, no_such_parameter=1.0) == refinement
    assert few_steps("learned") == OURS["kl"]


# The validation part


def assert_disjoint(parts, n):
    """Sequences carry their index."""
    own, other = ({int(row[0]) for row in part} for part in (parts.train, parts.validation))
    assert own and other and not own & other
    assert own | other <= set(range(n))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 9, 31, 256])
@pytest.mark.parametrize("asked", [(1, 1), (6, 3), (1000, 1000)])
def test_no_sequence_is_in_both_parts(n, asked):
    numbered = torch.arange(n)[:, None].expand(n, 5)
    parts = Parts.of(numbered, *asked, length=3)
    assert_disjoint(parts, n)
    assert parts.train.shape == (min(asked[0], n - -(-n // 4)), 3)
    assert parts.validation.shape == (min(asked[1], -(-n // 4)), 3)
    turns = torch.cat([parts.rows(step, 2) for step in range(1, n + 1)])
    assert set(turns.tolist()) == set(range(len(parts.train)))  # all have their turn


def test_one_part_as_both_is_noticed():
    numbered = torch.arange(8)[:, None].expand(8, 5)
    with pytest.raises(AssertionError):
        assert_disjoint(Parts(numbered, numbered), 8)


def assert_parts_keep_apart(setting, refinement):
    """Other validation sequences: the training part's loss at the start is the same; and the reverse."""
    validates = torch.arange(len(setting.sequences)) % 4 == 0
    usual = setting.refined(refinement)
    for turned, kept, moved in ((validates, "train", "validation"), (~validates, "validation", "train")):
        tokens = torch.where(turned[:, None], (setting.sequences + 7) % 50, setting.sequences)
        found = dataclasses.replace(setting, sequences=tokens).refined(refinement)
        for part, same in ((kept, True), (moved, False)):
            assert (found.losses[f"{part}.start"] == usual.losses[f"{part}.start"]) == same, (
                f"{type(refinement).__name__}: take every fourth sequence to validate, by Parts.of, and no other"
            )


def test_no_loss_is_over_both_parts(setting, refinement):
    assert_parts_keep_apart(setting, changed(refinement, steps=1.0))


@pytest.mark.parametrize("kind", ["kl", "adaround"])
def test_judging_by_the_training_part_is_noticed(setting, kind, monkeypatch):
    honest = Parts.of

    def one_part(*args, **kwargs):
        parts = honest(*args, **kwargs)
        return Parts(parts.train, parts.train)

    monkeypatch.setattr(Parts, "of", one_part)
    with pytest.raises(AssertionError):
        assert_parts_keep_apart(setting, spec(kind, steps=1.0))


@pytest.mark.parametrize("kind", ["kl", "adaround"])  # which train by `descend`
def test_what_trains_is_the_training_part(setting, kind):
    """With the judges' sequences changed, the same scales are proposed: seen where judgement accepts all."""
    validates = torch.arange(len(setting.sequences)) % 4 == 0
    found = []
    for shift in (0, 7):
        tokens = torch.where(validates[:, None], (setting.sequences + shift) % 50, setting.sequences)
        with pytest.MonkeyPatch.context() as patch:
            plant(patch, "descend", last_wins)
            found.append(dataclasses.replace(setting, sequences=tokens).refined(spec(kind)).calibration)
    assert found[0].digest == found[1].digest != setting.start.digest


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (0, 9)])
def test_too_few_sequences_for_two_parts_are_refused(setting, refinement, shape):
    tokens = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(BadCorpus, match="needs two sequences of two tokens"):
        dataclasses.replace(setting, sequences=tokens).refined(refinement)


# Never worse than the start


def last_wins(scales, loss, judge, steps, rate, every, progress=lambda done: None):
    """The fault: the last scales, and the best's praise."""
    best = descend(scales, loss, judge, steps, rate, every, progress)
    return dataclasses.replace(best, calibration=scales.stored(), step=best.steps)


def assert_the_best_is_kept(setting, refinement):
    """What is handed back is what was judged, and no worse than the start by the judges' own measure."""
    found, name = setting.refined(refinement), type(refinement).__name__
    losses = found.losses
    better = losses["validation.end"] < losses["validation.start"]
    assert better or losses["validation.end"] == losses["validation.start"], (
        f"{name}: give back the start where no step was better on the validation part"
    )
    again = dataclasses.replace(setting, start=found.calibration).refined(changed(refinement, steps=1.0))
    for part in ("validation", "train"):
        assert again.losses[f"{part}.start"] == losses[f"{part}.end"], (
            f"{name}: tell the {part} loss of the scales that are given back, not of others"
        )
    assert better == (found.best_step > 0), f"{name}: set best_step to 0 where nothing was better, and there alone"
    assert better or found.calibration is setting.start, f"{name}: give back the start itself where nothing was better"


@pytest.mark.parametrize("rate", [0.02, 20.0])
def test_the_best_is_kept(setting, refinement, rate):
    assert_the_best_is_kept(setting, changed(refinement, rate=rate))


@pytest.mark.parametrize("kind", ["kl", "adaround"])  # the labels are too few to tell good scales from bad
def test_the_last_instead_of_the_best_is_noticed(setting, kind, monkeypatch):
    plant(monkeypatch, "descend", last_wins)
    with pytest.raises(AssertionError):
        assert_the_best_is_kept(setting, spec(kind, rate=20.0))


@pytest.mark.parametrize("rate", [1e3, 1e300])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "rate" in KINDS[kind] and kind != "nll"])
def test_an_absurd_rate_gives_back_the_start(setting, kind, rate):
    found = setting.refined(spec(kind, rate=rate))
    assert found.best_step == 0
    assert found.calibration is setting.start
    assert found.losses["validation.end"] == found.losses["validation.start"]
    assert found.gap == 0


# A start that can be bettered

ARCHITECTURES = ("mamba", "mamba2")
WRONG = [  # sixteen times too large, or clipped to a quarter
    ("mamba", "layers.1.in_proj:output", 0.25),
    ("mamba", "layers.0.out_proj:input", 16.0),
    ("mamba", "layers.1.x_proj:output", 0.25),
    ("mamba", "layers.1.ssm_state", 16.0),
    ("mamba", HEAD, 0.25),
    ("mamba2", "layers.1.z", 0.25),
    ("mamba2", "layers.0.x_conv_in", 16.0),
    ("mamba2", "layers.1.dt", 0.25),
    ("mamba2", "layers.0.x_conv_out", 16.0),
    ("mamba2", "layers.1.B_conv_out", 0.25),
    ("mamba2", "layers.0.ssm_state", 16.0),
    ("mamba2", HEAD, 16.0),
]


def assert_comes_back(make_setting, kind, architecture, site, factor):
    """From `factor` times a sound scale, towards it, and the loss falls.

    All other sites are float, so that this scale is what is wrong: 16 times leaves 4 bits of 8.
    """
    others = tuple(s for s in sites_of(make_setting(architecture).prepared.config) if s != site)
    setting = make_setting(architecture, floats=others).scaled(site, factor)
    found = setting.refined(spec(kind))
    assert found.best_step > 0
    assert found.losses["validation.end"] < found.losses["validation.start"]
    moved = (found.calibration.scales[site] / setting.start.scales[site]).item()
    assert (moved < 1) == (factor > 1), f"{site} moved by {moved:.3f} from {factor} times"


@pytest.mark.parametrize(("architecture", "site", "factor"), WRONG)
@pytest.mark.parametrize("kind", ["kl", "adaround"])
def test_a_wrong_scale_comes_back(make_setting, kind, architecture, site, factor):
    assert_comes_back(make_setting, kind, architecture, site, factor)


def test_labels_alone_bring_a_wrong_scale_back(make_setting):
    assert_comes_back(make_setting, "nll", "mamba", HEAD, 0.25)


@pytest.mark.parametrize("kind", ["kl", "adaround"])
def test_a_gradient_of_the_wrong_sign_is_noticed(make_setting, kind, monkeypatch):
    honest = torch.autograd.grad

    def flipped(*args, **kwargs):
        return tuple(None if g is None else -g for g in honest(*args, **kwargs))

    monkeypatch.setattr(torch.autograd, "grad", flipped)
    with pytest.raises(AssertionError):
        assert_comes_back(make_setting, kind, "mamba2", "layers.0.x_conv_out", 16.0)


# What else is owed


def assert_twice_is_the_same(setting, refinement):
    """To the bit, whatever torch's own stream of chance is at, and that stream stays there."""
    name, first = type(refinement).__name__, setting.refined(refinement)
    with torch.random.fork_rng():
        torch.manual_seed(1234)
        before = torch.random.get_rng_state()
        second = setting.refined(refinement)
        untouched = torch.equal(torch.random.get_rng_state(), before)
    assert untouched, f"{name}: draw from a torch.Generator of your own, not from torch's stream"
    one, other = ((found.losses, found.best_step, found.calibration.digest) for found in (first, second))
    assert one == other, f"{name}: give equal scales and losses for equal arguments; seed whatever draws"


def test_twice_is_the_same_to_the_bit_and_nobodys_randomness_is_touched(setting, refinement):
    assert_twice_is_the_same(setting, refinement)


def assert_what_is_given_is_left_alone(setting, refinement):
    whose, weights = type(refinement).__name__, {n: p.clone() for n, p in setting.prepared.named_parameters()}
    before = setting.start.digest
    setting.refined(refinement)
    assert setting.start.digest == before, f"{whose}: train a copy of the start's scales, not these themselves"
    for name, p in setting.prepared.named_parameters():
        kept = torch.equal(p, weights[name]) and p.grad is None and not p.requires_grad
        assert kept, f"{whose}: leave the float model's {name} alone, its gradient too"


def test_the_float_model_and_the_start_are_left_alone(setting, refinement):
    assert_what_is_given_is_left_alone(setting, refinement)


class Faulty:
    """A refinement that does something on the way; a subclass says what."""

    def refine(self, prepared, quantized, start, sequences, progress):
        self.spoil(prepared, start)
        return spec("kl", steps=1.0).refine(prepared, quantized, start, sequences, progress)


class Draws(Faulty):
    def spoil(self, prepared, start):
        torch.rand(1)


class GoesOn(Faulty):
    """Scales that depend on how often it was called."""

    times = 0

    def spoil(self, prepared, start):
        self.times += 1
        start.scales[HEAD].mul_(1 + self.times)


class WritesToTheStart(Faulty):
    def spoil(self, prepared, start):
        start.scales[HEAD].mul_(2)


class WritesToTheModel(Faulty):
    def spoil(self, prepared, start):
        next(iter(prepared.parameters())).add_(1)


class LeavesGradients(Faulty):
    def spoil(self, prepared, start):
        next(iter(prepared.parameters())).requires_grad_()


@pytest.mark.parametrize(
    ("fault", "caught_by", "says"),
    [
        (Draws, assert_twice_is_the_same, "draw from a torch.Generator of your own"),
        (GoesOn, assert_twice_is_the_same, "give equal scales and losses"),
        (WritesToTheStart, assert_what_is_given_is_left_alone, "train a copy of the start's scales"),
        (WritesToTheModel, assert_what_is_given_is_left_alone, "leave the float model's"),
        (LeavesGradients, assert_what_is_given_is_left_alone, "its gradient too"),
    ],
)
def test_what_does_more_than_refine_is_noticed(make_setting, fault, caught_by, says):
    with pytest.raises(AssertionError, match=says):
        caught_by(make_setting("mamba"), fault())


@pytest.mark.parametrize("grain", [1, 3])  # 0 is everybody else's
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["kl", "adaround"])
def test_every_granularity_trains(make_setting, architecture, grain, kind):
    setting = make_setting(architecture, Precision(act_bits=5), grain)
    found = setting.refined(spec(kind))
    assert found.best_step > 0
    assert found.calibration.granularities == setting.start.granularities
    stayed = {part for part, step in found.best_steps.items() if step == 0}
    assert len(stayed) < 3
    for site, scale in setting.start.scales.items():
        new = found.calibration.scales[site]
        assert new.shape == scale.shape and new.dtype == torch.float32, site
        assert (new >= MIN_SCALE).all() and new.isfinite().all(), site
        assert torch.equal(new, scale) == (site.rpartition(".")[0] in stayed or site.partition(":")[0] in stayed), site


@pytest.mark.parametrize(
    "precision",
    [
        Precision(weight_bits=4, act_bits=6),
        Precision(ssm_state=False, lm_head=False, embedding=False),
        Precision.parse("mix[w8a16,w16a8]"),
    ],
    ids=lambda precision: precision.id,
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float_sites_are_left_alone(make_setting, architecture, precision, refinement):
    floats = ("layers.0.ssm_state", "layers.1.in_proj:input")
    setting = make_setting(architecture, precision, floats=floats)
    found = setting.refined(refinement)
    trained = trained_sites(setting.quantized)
    states = () if precision.ssm_state else ("layers.1.ssm_state",)
    heads = () if precision.lm_head else (HEAD,)
    layer = {s for s in setting.start.scales if precision.layers and s.startswith("layers.0.")}
    assert set(setting.start.scales) - set(trained) == {*floats, *states, *heads, *layer}
    for site, scale in setting.start.scales.items():
        assert torch.equal(found.calibration.scales[site], scale) or site in trained, site
    assert found.calibration.scales[floats[0]].numel() == 0


def test_nothing_to_train_is_the_start(make_setting, refinement):
    everything = tuple(sites_of(make_setting("mamba").prepared.config))
    setting = make_setting("mamba", floats=everything)
    found = setting.refined(refinement)
    assert found.best_step == 0
    assert found.calibration is setting.start


def test_an_asymmetric_start_is_refused_in_one_line(make_setting, refinement):
    setting = make_setting("mamba", Precision(symmetric=False))
    with pytest.raises(BadParameter, match=r"\A\w+ must start from a symmetric calibration[^\n]*\Z"):
        setting.refined(refinement)


def test_progress_ends_at_the_end(setting, refinement):
    told = []
    setting.refined(refinement, lambda done, total: told.append((done, total)))
    done, totals = zip(*told, strict=True)
    assert list(done) == list(range(1, totals[0] + 1))
    assert set(totals) == {totals[0]}


def test_the_gap_is_the_training_parts_lead(setting, refinement):
    found = setting.refined(refinement)
    assert set(found.losses) == {f"{part}.{when}" for part in ("train", "validation") for when in ("start", "end")}
    kept = {part: found.losses[f"{part}.end"] / found.losses[f"{part}.start"] for part in ("train", "validation")}
    assert found.gap == kept["validation"] - kept["train"]


def test_a_user_reads_how_long_how_good_and_how_overfit(setting):
    losses = {"train.start": 0.5, "train.end": 0.25, "validation.start": 0.4, "validation.end": 0.3}
    found = Refined(setting.start, losses, best_step=6, steps=8, seconds=1.23)
    assert found.summary == (
        "8 steps in 1.2 s, best after 6; loss 0.5 -> 0.25 on the training part,"
        " 0.4 -> 0.3 on the validation part, gap +25.0 points"
    )


@pytest.mark.parametrize(
    "text",
    ["learned[steps=0]", "learned[steps=1.5]", "learned[rate=0]", "learned[rate=nan]", "learned[loss=mse]",
     "learned[batch=0]", "learned[length=1]", "learned[piece=0]", "learned[every=0]", "adaround[train=0]",
     "adaround[validation=0]", "adaround[cold=0]", "adaround[warm=0.3]", "adaround[warm=0.01]", "learned[lr=1]"],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_one_line(text):
    with pytest.raises(BadParameter, match=r"\A[^\n]+\Z"):
        RefinementSpec.parse(text)


@pytest.mark.parametrize("name", ["learned", "adaround"])
def test_a_default_written_out_is_the_same_refinement(name):
    """The rest is asked of every refinement in tests/contract/test_specs.py."""
    bare = RefinementSpec(name).complete
    assert RefinementSpec.parse(f"{name}[steps={bare.build().steps:g}]").complete == bare


# Scales that are trained


def test_a_start_is_stored_as_it_was(setting):
    scales = Scales(setting.start, setting.prepared.config, trained_sites(setting.quantized))
    assert scales.stored().digest == setting.start.digest


def test_scales_live_on_the_grid(setting):
    scales = Scales(setting.start, setting.prepared.config, [HEAD])
    with torch.no_grad():
        scales.logs[HEAD].fill_(-3.00017)
    scales.settle()
    assert scales.logs[HEAD].unique().tolist() == [-3 - 1 / 4096]
    # A scale is stored as float32: half of its eps, 6e-8, and log has that as its difference.
    torch.testing.assert_close(
        scales.stored().scales[HEAD].double().log(), scales.logs[HEAD].detach(), rtol=0, atol=1e-7
    )


@pytest.fixture
def other_machine(monkeypatch):
    """other_machine(): from now on gradients differ in their last digits, as on a machine that sums otherwise."""

    def begin():
        generator, step = torch.Generator().manual_seed(0), training.Adam.step

        def disturbed(self, gradients, rate):
            noise = [torch.randn(g.shape, generator=generator, dtype=g.dtype) for g in gradients if g is not None]
            noisy = iter(noise)
            step(self, tuple(g if g is None else g * (1 + 1e-8 * next(noisy)) for g in gradients), rate)

        monkeypatch.setattr(training.Adam, "step", disturbed)

    return begin


@pytest.mark.parametrize("kind", ["kl", "adaround"])
def test_another_machines_arithmetic_finds_the_same_scales(setting, kind, other_machine):
    here = setting.refined(spec(kind, steps=24))
    assert here.best_step > 0
    other_machine()
    assert setting.refined(spec(kind, steps=24)).calibration.digest == here.calibration.digest


@pytest.mark.parametrize("kind", ["kl", "adaround"])
def test_without_the_grid_it_would_not(setting, kind, other_machine, monkeypatch):
    monkeypatch.setattr(training, "GRAIN", 2.0**-50)
    here = setting.refined(spec(kind, steps=24))
    other_machine()
    assert setting.refined(spec(kind, steps=24)).calibration.digest != here.calibration.digest


@pytest.mark.parametrize("log", [-1e300, -1e3, -20.0, -13.815510557964275, -13.0])
def test_no_scale_falls_below_the_floor(setting, log):
    scales = Scales(setting.start, setting.prepared.config, [HEAD])
    with torch.no_grad():
        scales.logs[HEAD].fill_(log)
    scales.settle()
    assert scales.logs[HEAD].exp() > 0
    assert scales.stored().scales[HEAD] >= torch.tensor(MIN_SCALE)
