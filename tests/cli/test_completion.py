"""`quambench completion`: bash itself completes, and starts no Python for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from quambench.cli.completion import SHELLS, script
from quambench.cli.main import COMMANDS, main, whole_parser

COMPLETE = """
PATH=  # whatever is started now is not found
source /dev/stdin <<< "$SCRIPT"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
function=$(complete -p quambench); function=${function#*-F }
${function%% *} quambench "${COMP_WORDS[COMP_CWORD]}" ""
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def bash():
    pytest.importorskip("shtab", reason="the extra `completion` brings it")
    return script(whole_parser(), "bash")


def completed(bash: str, *words: str, cwd=None) -> set[str]:
    command = ["/bin/bash", "-c", COMPLETE, "bash", "quambench", *words]
    ran = subprocess.run(command, env={"SCRIPT": bash}, cwd=cwd, capture_output=True, text=True, timeout=30)
    assert ran.stderr == ""
    return set(ran.stdout.split())


def test_bash_completes_commands_options_and_choices(bash):
    assert completed(bash, "c") == {name for name in COMMANDS if name.startswith("c")}
    assert completed(bash, "eval", "mamba-tiny", "--ca") == {"--calibration"}
    assert completed(bash, "bench", "") == {"kernels", "models", "gate"}


def test_bash_completes_folders_where_an_option_takes_a_folder(bash, tmp_path):
    (tmp_path / "scales").mkdir()
    (tmp_path / "text.txt").touch()
    assert completed(bash, "calibrate", "mamba-tiny", "--out", "", cwd=tmp_path) == {"scales"}
    assert completed(bash, "import", "", cwd=tmp_path) == {"scales", "text.txt"}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_command_prints_the_script(shell, capsys):
    pytest.importorskip("shtab", reason="the extra `completion` brings it")
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


def test_without_the_library_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'quambench[completion]'" in capsys.readouterr().err
