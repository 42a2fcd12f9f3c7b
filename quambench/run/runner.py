"""The only conductor: Case -> Result. Work that cases of a model share is done once."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol as TypingProtocol

import torch
from torch import Tensor

from quambench.calibration.channels import arrange, channel_statistics, groups_of, order_digest
from quambench.calibration.collect import Task, calibrate, digest_of, each
from quambench.calibration.hessians import gather_hessians
from quambench.calibration.refine import Refined
from quambench.calibration.scales import Calibration, check_calibration
from quambench.calibration.sensitivity import measure
from quambench.calibration.stored_model import StoredModel
from quambench.case import LARGER, Case, Protocol, check_fit
from quambench.core.errors import BadArtefact, BadParameter
from quambench.core.memory import keep_freed_memory
from quambench.core.plugins import calling
from quambench.core.scratch import scratch
from quambench.data.corpus import Corpus
from quambench.data.recall import mixed_sequences
from quambench.data.windows import check_count, spread_windows
from quambench.evaluation.data import EvalData
from quambench.evaluation.evidence import evaluate, evaluate_answers
from quambench.evaluation.reference import WINDOW_BATCH, FloatAnswers, FloatInside, float_answers, float_inside
from quambench.evaluation.result import Result
from quambench.grids.granularity import UNQUANTIZED
from quambench.grids.precision import Precision
from quambench.grouping import ChannelStatistics, GroupingSpec, Groups
from quambench.int8.fuse import prepare
from quambench.int8.model import QuantizedModel, quantize_model
from quambench.int8.ops import Disturb, undisturbed
from quambench.interchange.outside import FloatModel, find_calibration
from quambench.interchange.quamba import from_act_scales, reorder_params_of
from quambench.metrics import METRICS, Measurement, metrics_of
from quambench.models.backbone import LanguageModel
from quambench.models.checkpoint import Checkpoint
from quambench.models.device import Guest, on_host
from quambench.observers import ObserverSpec
from quambench.policy import Sensitivity

CPU = torch.device("cpu")
Progress = Callable[[str, int, int], None]
"""(what is being done, steps done, steps in all) -> None"""


class AsksTasks(TypingProtocol):
    """Who asks a case's tasks: quambench/harness/asking.py."""

    def evidence(self, checkpoint: Checkpoint, case: Case, model: QuantizedModel, digest: str) -> dict[str, Tensor]:
        """digest: of what decides the model's answers"""

    def digest(self, checkpoint: Checkpoint, case: Case) -> str:
        """Of the documents asked."""


@dataclass(frozen=True, slots=True)
class Known:
    """What follows from model, corpus and protocol alone, by their digests; filled as runs go.

    Nothing that calibration or quantization does can change it, so runs may hand it on.
    """

    data: dict[tuple[str, str, Protocol], EvalData] = field(default_factory=dict)
    sequences: dict[tuple[str, str, Protocol], Tensor] = field(default_factory=dict)
    answers: dict[tuple[str, str], FloatAnswers] = field(default_factory=dict)  # (model, evaluation data)
    rest: dict[tuple[str, str, Protocol], EvalData | None] = field(default_factory=dict)


class ModelRun:
    """All cases of one model on one corpus and protocol, in one process."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        corpus: Corpus,
        cases: Iterable[Case],
        progress: Progress = lambda what, done, total: None,
        known: Known | None = None,
        window_batch: int = WINDOW_BATCH,
        device: str = "cpu",
        tasks: AsksTasks | None = None,
        all_calibration: bool = False,
    ) -> None:
        """checkpoint: on the CPU; device: where models compute; tasks: for cases that name some

        Where the texts have fewer windows than the protocol asks for, those are taken: settings and `shortfall` say so.
        all_calibration: an error there, of calibration windows, where somebody asked for their number
        """
        keep_freed_memory()
        self._guest = Guest(device)
        self._tasks = tasks
        self._all_calibration = all_calibration
        self._known = known or Known()
        self.checkpoint, self.corpus = checkpoint, corpus
        self.cases = tuple(dict.fromkeys(cases))
        self._progress = progress
        self._window_batch = window_batch
        self._measured: dict[tuple[object, ...], dict[str, Tensor]] = {}
        self._measured_rest: dict[tuple[object, ...], dict[str, Tensor]] = {}
        self._sensitivity: dict[tuple[ObserverSpec, Precision, int], Sensitivity] = {}
        self._failed: dict[Case, Exception] = {}
        self._groups: dict[GroupingSpec, Mapping[int, Groups]] = {}
        # Of the last order of channels asked for, with that order: at 2.7b parameters each is tens of GB.
        self._arranged: tuple[str, LanguageModel] | None = None
        self._inside: tuple[str, FloatInside] | None = None
        self._hessians: tuple[str, dict[str, Tensor]] | None = None
        self._last: tuple[Case, Disturb, QuantizedModel] | None = None
        self.refined: dict[Case, Refined] = {}  # what training came to, once `calibrations` are made
        protocols = {case.protocol for case in self.cases}
        if len(protocols) != 1:
            raise BadParameter(f"the cases of a run must share one protocol (got {len(protocols)})")
        (self.protocol,) = protocols

    @property
    def device(self) -> torch.device:
        """Where models compute."""
        return self._guest.device

    @cached_property
    def plain(self) -> LanguageModel:
        """Prepared, in the checkpoint's own order of channels. raises BadParameter"""
        try:
            return prepare(self.checkpoint.model)
        except BadParameter as error:
            raise error.within(self.checkpoint.name) from None

    @cached_property
    def channel_statistics(self) -> dict[int, ChannelStatistics]:
        self._progress(f"{self.checkpoint.name}: statistics of channels", 0, 1)
        return channel_statistics(self._guest.take(self.plain), self.calibration_sequences)

    def groups(self, case: Case) -> Mapping[int, Groups]:
        """By layer; none for a case without. raises BadParameter"""
        if case.groups_by is None:
            return {}
        spec = case.groups_by.complete
        if spec not in self._groups:
            self._groups[spec] = groups_of(self.checkpoint.config, spec, lambda: self.channel_statistics)
        return self._groups[spec]

    def prepared(self, case: Case) -> LanguageModel:
        """What the case calibrates and quantizes, in its order of channels; the last one asked for is kept."""
        groups = self.groups(case)
        order = order_digest(groups)
        if self._arranged is None or self._arranged[0] != order:
            self._arranged = None  # before another is made
            self._guest.clear()
            self._arranged = order, arrange(self.checkpoint.model, groups, self.plain)
        return self._arranged[1]

    @property
    def _key(self) -> tuple[str, str, Protocol]:
        return self.checkpoint.digest, "" if self.checkpoint.recall else self.corpus.digest, self.protocol

    @cached_property
    def data(self) -> EvalData:
        if self._key not in self._known.data:
            self._known.data[self._key] = self._make_data()
        return self._known.data[self._key]

    def _make_data(self) -> EvalData:
        if self.checkpoint.recall:
            return EvalData.of_recall(self.checkpoint.recall, self.protocol)
        return EvalData.of_prose(self.corpus.part("test"), self.checkpoint.tokenizer, self.protocol)

    @property
    def rest_data(self) -> EvalData | None:
        """What a second look is judged on: nothing that the first has seen. None where the protocol has no second."""
        if self._key not in self._known.rest:
            self._known.rest[self._key] = self._make_rest()
        return self._known.rest[self._key]

    @property
    def rest_digest(self) -> str:
        """Which windows and items a second look is judged on; "" where there is none."""
        return self.rest_data.digest if self.rest_data else ""

    def _make_rest(self) -> EvalData | None:
        larger = LARGER.get(self.protocol)
        if larger is None:
            return None
        if self.checkpoint.recall:
            return self.data.rest_of_recall(self.checkpoint.recall, self.protocol, larger)
        return self.data.rest_of_prose(self.corpus.part("test"), self.checkpoint.tokenizer, self.protocol, larger)

    def rest(self, case: Case) -> dict[str, Tensor]:
        """Evidence of a second look: what the case answers on `rest_data`; none where there is no second."""
        data = self.rest_data
        if data is None:
            return {}
        key = self._evidence_key(case)
        if key not in self._measured_rest:
            answers = self._answers_on(data)
            self._progress(f"{case.id}: a second look", 0, 1)
            model = on_host(self.quantized(case), self.device)
            self._measured_rest[key] = evaluate_answers(model, answers, data, self._window_batch)
        return self._measured_rest[key]

    @cached_property
    def calibration_sequences(self) -> Tensor:
        """(S, L) int64, in the order in which observers see them."""
        if self._key not in self._known.sequences:
            self._known.sequences[self._key] = self._make_sequences()
        return self._known.sequences[self._key]

    def _make_sequences(self) -> Tensor:
        p = self.protocol
        if self.checkpoint.recall:
            return mixed_sequences(self.checkpoint.recall, p.calib_windows, p.calib_length, "calibration")
        documents = self.corpus.part("calibration")
        found = spread_windows(documents, self.checkpoint.tokenizer, p.calib_length, p.calib_windows)
        if self._all_calibration:
            check_count(found, p.calib_windows, "calibration")
        return found.inputs

    def _used(self) -> dict[str, int]:
        """How many windows there were: no more than the protocol asks for, and fewer where the texts have no more."""
        if self.checkpoint.recall:
            return {}
        data = self.data
        parts = {"quality_windows": data.quality, "decode_windows": data.decode, "error_windows": data.error}
        made = self._known.sequences.get(self._key)  # scales that were made before need none
        calibration = {} if made is None else {"calib_windows": len(made)}
        return calibration | {name: len(windows.inputs) for name, windows in parts.items()}

    @property
    def shortfall(self) -> str:
        """Which windows were fewer than the protocol asks for, in a line; "" where none were."""
        return self._shortfall(self._used())

    @property
    def calibration_shortfall(self) -> str:
        """The same of calibration alone, after it."""
        return "" if self.checkpoint.recall else self._shortfall({"calib_windows": len(self.calibration_sequences)})

    def _shortfall(self, used: Mapping[str, int]) -> str:
        asked = {name: getattr(self.protocol, name) for name in used}
        short = [f"{name} {n} of {asked[name]}" for name, n in used.items() if n < asked[name]]
        return f"the texts have fewer windows than are asked for: {', '.join(short)}" if short else ""

    @cached_property
    def answers(self) -> FloatAnswers:
        """Of the untouched float checkpoint."""
        return self._answers_on(self.data)

    def _answers_on(self, data: EvalData) -> FloatAnswers:
        key = (self.checkpoint.digest, data.digest)
        if key not in self._known.answers:
            self._progress(f"{self.checkpoint.name}: float reference", 0, 1)
            untouched = copy.deepcopy(self.checkpoint.model).double()
            self._known.answers[key] = float_answers(self._guest.take(untouched), data)
            self._guest.clear()
        return self._known.answers[key]

    def inside(self, case: Case) -> FloatInside:
        """Of the float model in the case's order; the last one asked for is kept."""
        order = order_digest(self.groups(case))
        if self._inside is None or self._inside[0] != order:
            self._inside = order, float_inside(self._guest.take(self.prepared(case)), self.data)
        return self._inside[1]

    def calibration(self, case: Case) -> Calibration:
        """A case's scales, refined where it says so.

        raises what making them raised, of this case alone
        """
        made = self.calibrations
        if case in self._failed:
            raise self._failed[case]
        return made[case]

    @cached_property
    def calibrations(self) -> dict[Case, Calibration]:
        """One pass for all cases, a second for those whose policy measures first; without those that fail."""
        ours = [case for case in self.cases if not case.calibration]
        measuring = [case for case in ours if case.policy.found().measures]
        plain = [case for case in ours if case not in measuring]
        made = self._calibrate(plain) | self._calibrate(measuring)
        made |= each([case for case in self.cases if case.calibration], self._calibrated_outside, self._failed)
        return each((case for case in self.cases if case in made), lambda c: self._refined(c, made[c]), self._failed)

    def _task(self, case: Case) -> Task:
        check_fit(case)
        case.precision.check_layers(self.checkpoint.config.n_layers)
        sensitivity = self.sensitivity(case) if case.policy.found().measures else None
        plan = case.policy.build().plan(self.checkpoint.config, case.observer, case.grouping, sensitivity)
        plan = {s: a if case.precision.has_grid(s) else replace(a, granularity=UNQUANTIZED) for s, a in plan.items()}
        return Task(plan, case.precision.grid_bits, case.precision.symmetric, self.groups(case))

    def _calibrate(self, cases: Sequence[Case]) -> dict[Case, Calibration]:
        """Of those that can be, in one pass for each order of channels; the others' reasons stand in `_failed`."""
        title = f"{self.checkpoint.name}: calibration"
        tasks = each(cases, self._task, self._failed)
        by_order: dict[str, list[Case]] = {}
        for case, task in tasks.items():
            by_order.setdefault(order_digest(task.groups), []).append(case)
        made: dict[Case, Calibration] = {}
        for alike in by_order.values():
            made |= calibrate(
                self._guest.take(self.prepared(alike[0])),
                self.calibration_sequences,
                {case: tasks[case] for case in alike},
                self.checkpoint.digest,
                lambda i, n: self._progress(title, i, n),
                self._failed,
            )
        return each(made, lambda case: _saved_and_loaded(made[case]), self._failed)

    def _calibrated_outside(self, case: Case) -> Calibration:
        check_fit(case)
        self._progress(f"{case.id}: calibration from outside", 0, 1)
        groups = self.groups(case)
        model, sequences = FloatModel.of(self._guest.take(self.prepared(case)), groups), self.calibration_sequences
        calibrate_outside = find_calibration(case.calibration)
        with torch.no_grad(), calling(case.calibration):
            act_scales = calibrate_outside(model, list(sequences.clone().split(1)))
        made = from_act_scales(
            act_scales, reorder_params_of(groups), self.checkpoint.config, model_digest=self.checkpoint.digest,
            data_digest=digest_of(sequences), observer=case.calibration,
        )  # fmt: skip
        return _saved_and_loaded(made)

    def sensitivity(self, case: Case) -> Sensitivity:
        """KL to float with one site alone quantized, by the case's observer and precision."""
        key = (case.observer, case.precision, case.policy.build().candidates)
        if key not in self._sensitivity:
            self._progress(f"{self.checkpoint.name}: sensitivity", 0, 1)
            sequences, digest = self.calibration_sequences, self.checkpoint.digest
            self._sensitivity[key] = measure(self._guest.take(self.plain), sequences, *key[:2], digest, key[2])
        return self._sensitivity[key]

    def _refined(self, case: Case, start: Calibration) -> Calibration:
        if case.refinement is None:
            return start
        if self.device.type != "cpu":
            raise BadParameter(f"{case.refinement.name} trains on a CPU alone: leave the device out")
        title = f"{case.id}: training scales"
        model = self._quantize(case, start)
        found = case.refinement.build().refine(
            self.prepared(case),
            model,
            start,
            self.calibration_sequences,
            lambda i, n: self._progress(title, i, n),
        )
        self.refined[case] = found
        return _saved_and_loaded(found.calibration)

    def hessians(self, case: Case) -> dict[str, Tensor]:
        """Weight name -> (in, in) sum of x xT over the calibration tokens, for GPTQ; the last ones are kept."""
        order = order_digest(self.groups(case))
        if self._hessians is None or self._hessians[0] != order:
            self._progress(f"{self.checkpoint.name}: Hessians", 0, 1)
            self._hessians = order, gather_hessians(self._guest.take(self.prepared(case)), self.calibration_sequences)
        return self._hessians[1]

    def quantized(self, case: Case, disturb: Disturb = undisturbed) -> QuantizedModel:
        """The last one asked for is kept: what rounds weights may be a search."""
        if self._last is None or self._last[:2] != (case, disturb):
            self._last = case, disturb, self._quantize(case, self.calibration(case), disturb)
        return self._last[2]

    def _quantize(self, case: Case, calibration: Calibration, disturb: Disturb = undisturbed) -> QuantizedModel:
        hessians = self.hessians(case) if case.weights.gptq else None
        return quantize_model(
            self.prepared(case), calibration, case.precision, disturb, case.weights, hessians, self.device
        )

    def evidence(self, case: Case) -> dict[str, Tensor]:
        """The measurement. Cases whose scales and precision are equal are the same model, measured once."""
        key = (*self._evidence_key(case), case.tasks, case.task_limit)
        if key not in self._measured:
            self._measured[key] = self.measure_again(case)
        return self._measured[key]

    def _evidence_key(self, case: Case) -> tuple[object, ...]:
        """What decides a model's answers."""
        return self.calibration(case).digest, case.precision, case.weights

    def training(self, case: Case) -> dict[str, Tensor]:
        """refinement.losses (4,) float64: train start, train end, validation start, validation end."""
        if case not in self.refined:
            return {}
        losses = self.refined[case].losses
        order = ("train.start", "train.end", "validation.start", "validation.end")
        return {"refinement.losses": torch.tensor([losses[name] for name in order], dtype=torch.float64)}

    def measure_again(self, case: Case, disturb: Disturb = undisturbed) -> dict[str, Tensor]:
        """The measurement, not remembered: under other numerics."""
        model, calibration = on_host(self.quantized(case, disturb), self.device), self.calibration(case)
        found = evaluate(model, self.answers, self.inside(case), self.data, calibration, self._window_batch)
        if case.tasks:
            self._progress(f"{case.id}: tasks", 0, 1)
            digest = f"{calibration.digest} {case.id} {'' if disturb is undisturbed else id(disturb)}"
            found |= self._asking(case).evidence(self.checkpoint, case, model, digest)
        return found

    def _asking(self, case: Case) -> AsksTasks:
        if self._tasks is None:
            raise BadParameter(f"{case.id} names tasks, and nobody here asks them: use --qb-task, or eval --task")
        return self._tasks

    def with_saved(self, calibration: Calibration) -> dict[str, Measurement]:
        """What scales that were made before come to, weights in 8 bits. raises BadArtefact for another model's"""
        return self._measured_before(*saved_model(self.checkpoint, calibration, self.device), calibration)

    def with_stored(self, stored: StoredModel) -> dict[str, Measurement]:
        """What a model that was quantized before comes to. raises BadArtefact for another model's"""
        prepared, model = stored_model(self.checkpoint, stored, self.device)
        return self._measured_before(prepared, model, stored.calibration)

    def _measured_before(
        self, prepared: LanguageModel, model: QuantizedModel, calibration: Calibration
    ) -> dict[str, Measurement]:
        answers, there = self.answers, on_host(model, self.device)
        inside = float_inside(self._guest.take(prepared), self.data)
        evidence = evaluate(there, answers, inside, self.data, calibration, self._window_batch)
        return {name: metric.measure(evidence) for name, metric in METRICS.items()}

    def settings(self, case: Case) -> dict[str, object]:
        """What decides whether a stored number measured the same thing."""
        versions = {f"metric.{m.name}": m.version for m in METRICS.values()}
        digests = {
            "model_digest": self.checkpoint.digest,
            "calibration_data": self.calibration(case).data_digest,
            "evaluation_data": self.data.digest,
        }
        if case.tasks:
            digests["task_data"] = self._asking(case).digest(self.checkpoint, case)
        return case.settings() | self._used() | digests | versions

    def result(self, case: Case) -> Result:
        calibration, _, _ = self.calibration(case), self.answers, self.inside(case)
        started = time.perf_counter()
        self._progress(f"{case.id}: evaluation", 0, 1)
        evidence = self.evidence(case) | self.training(case) | _order(calibration)
        return Result(
            case=case,
            settings=self.settings(case),
            metrics={name: metric.measure(evidence) for name, metric in metrics_of(evidence).items()},
            evidence=evidence,
            calibration=calibration,
            weights=self.quantized(case).weights(),
            seconds=time.perf_counter() - started,
        )


def saved_model(
    checkpoint: Checkpoint, calibration: Calibration, device: torch.device = CPU
) -> tuple[LanguageModel, QuantizedModel]:
    """The prepared model and the INT8 one of scales made before, weights in 8 bits; the latter on a device.

    raises BadArtefact when they are another model's
    """
    prepared = _prepared_for(checkpoint, calibration)
    precision = Precision(act_bits=calibration.act_bits, symmetric=calibration.symmetric)
    return prepared, quantize_model(prepared, calibration, precision, device=device)


def stored_model(
    checkpoint: Checkpoint, stored: StoredModel, device: torch.device = CPU
) -> tuple[LanguageModel, QuantizedModel]:
    """The prepared model and the INT8 one that was made of it before; the latter on a device.

    raises BadArtefact when it is another model's
    """
    return _prepared_for(checkpoint, stored.calibration), stored.model.to(device)


def _prepared_for(checkpoint: Checkpoint, calibration: Calibration) -> LanguageModel:
    """raises BadArtefact"""
    if calibration.model_digest != checkpoint.digest:
        raise BadArtefact(f"these scales were made for another model than {checkpoint.name!r}")
    check_calibration(calibration, checkpoint.config)
    return prepare(checkpoint.model, calibration.groups)


def _order(calibration: Calibration) -> dict[str, Tensor]:
    """groups.channel_index, groups.of_channel (n_layers, E) int32: which channel stands where, and in which group."""
    by_layer = calibration.groups.values()
    if not by_layer:
        return {}
    return {
        f"groups.{name}": torch.stack([getattr(groups, name) for groups in by_layer]).to(torch.int32)
        for name in ("channel_index", "of_channel")
    }


def _saved_and_loaded(calibration: Calibration) -> Calibration:
    """What is judged is what a user would load, so that a fault in saving shows like any other."""
    with scratch() as folder:
        calibration.save(folder)
        return Calibration.load(folder)
