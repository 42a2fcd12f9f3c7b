"""The harness' own command line, in a process of its own: what it knows of us, and what it leaves behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from quambench.harness import tasks_folder
from quambench.harness.__main__ import main
from quambench.harness.adapter import QuambenchLM


def call(home: Path, *command: str) -> tuple[int, str, str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "hf")}
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, env=environment, cwd=home)
    return done.returncode, done.stdout, done.stderr


def accuracy(table: str, task: str) -> float:
    found = re.search(rf"\|{task} *\|.*\|acc\w* *\|↑ +\| +([\d.]+)\|", table)
    assert found, table
    return float(found[1])


@pytest.mark.slow  # the harness indexes its own tasks first: ten seconds
def test_a_task_named_by_its_file_brings_the_model_along(world: Path, tmp_path: Path) -> None:
    """lm_eval itself, which makes the model before it loads tasks by name; nothing is written on the way."""
    task = tasks_folder() / "prose_continuation.yaml"
    code, out, err = call(
        tmp_path, "lm_eval", "run", "--model", "quambench", "--model_args",
        f"model={world / 'tiny-model'},observer=percentile[alpha=0.999,sigma=0.1]/quick,corpus={world / 'corpus'}",
        "--tasks", str(task), "--limit", "4", "--batch_size", "2",
    )  # fmt: skip
    assert code == 0, err
    assert 0 <= accuracy(out, "prose_continuation") <= 1
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    assert not list(tasks_folder().rglob("*.jsonl"))


@pytest.mark.slow
def test_our_module_knows_model_and_tasks_by_name(world: Path, tmp_path: Path) -> None:
    arguments = ["run", "--model", "quambench", "--model_args", f"model={world / 'tiny-model'}"]
    code, out, err = call(tmp_path, "quambench.harness", *arguments, "--tasks", "recall_induction_192", "--limit", "2")
    assert code == 0, err
    assert accuracy(out, "recall_induction_192") == 0  # a model of prose


def test_what_we_refuse_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever in the harness it is raised: here where its command line would make the model."""

    def as_the_harness_would() -> None:
        assert sys.argv[1:] == ["run", "--batch_size", "auto", "--include_path", str(tasks_folder())]
        QuambenchLM.create_from_arg_obj({"model": "mamba2-tiny"}, {"batch_size": "auto"})

    monkeypatch.setattr(sys, "argv", ["harness"])
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", as_the_harness_would)
    assert main(["run", "--batch_size", "auto"]) == 2
    assert capsys.readouterr().err == "quambench: batch_size must be a whole number of at least 1 (got 'auto')\n"


@pytest.mark.parametrize("given", [["--cache_requests"], ["--cache_requests", "true"], ["--cache_requests=refresh"]])
def test_stored_prompts_are_refused(
    given: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: pytest.fail("the harness was run"))
    assert main(["run", *given, "--tasks", "prose_lambada"]) == 2
    assert capsys.readouterr().err.startswith("quambench: leave --cache_requests out: ")


@pytest.mark.parametrize("given", [["--cache_requests", "delete"], ["--cache_requests=delete"]])
def test_stored_prompts_may_be_deleted(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(sys, "argv", ["harness"])
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: called.append(sys.argv[1:]))
    assert main(["run", *given]) == 0
    assert called[0][: 1 + len(given)] == ["run", *given]


def test_an_include_path_of_the_users_own_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (["--include_path", "mine"], ["--include_path=mine"]):
        monkeypatch.setattr(sys, "argv", ["harness"])
        monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: None)
        assert main(["run", *given]) == 0
        assert sys.argv[1:] == ["run", *given]


def test_the_tasks_folder_is_told_without_the_harness(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--path"]) == 0
    assert Path(capsys.readouterr().out.strip()) == tasks_folder()
    assert main([]) == 0
    assert "example: python -m quambench.harness run" in capsys.readouterr().out
    code = "import sys, quambench.harness.__main__; print('lm_eval' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_without_the_harness_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("quambench.harness.find_spec", lambda name: None)
    assert main(["run"]) == 2
    assert "pip install 'quambench[harness]'" in capsys.readouterr().err
