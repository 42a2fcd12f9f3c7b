"""quambench export and import: from calibrate to eval by way of Quamba's file."""

from __future__ import annotations

import json
import os

import pytest
import torch

from quambench.calibration.scales import Calibration
from quambench.cli.eval import _table
from quambench.cli.main import main
from quambench.data.tokenizer import Tokenizer
from quambench.metrics import METRICS, Measurement
from quambench.models import ModelConfig, build
from quambench.models.checkpoint import save_checkpoint

CONFIGS = {
    "mamba": ModelConfig(architecture="mamba", d_model=8, n_layers=1, vocab_size=300, d_state=4, dt_rank=2),
    "mamba2": ModelConfig(architecture="mamba2", d_model=8, n_layers=1, vocab_size=300, d_state=4, head_dim=4),
}
LINE = "The union of the people shall stand for all of the people, and the people shall stand for the union. "


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two models, a corpus long enough for the default protocol's windows, and scales of each model."""
    root = tmp_path_factory.mktemp("world")
    (root / "corpus").mkdir()
    for i in range(6):
        (root / "corpus" / f"{i}.txt").write_text(f"Part {i}. " + LINE * 90)
    for name, config in CONFIGS.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            save_checkpoint(root / name, build(config), torch.float32)
        Tokenizer.train([LINE, "Part 0123456789."], 300).save(root / name / "tokenizer.json")
    for scales, model, *how in (
        ("mamba-scales", "mamba"),
        ("mamba2-scales", "mamba2"),
        ("grouped-scales", "mamba2", "--policy", "quamba2", "--grouping", "2x2"),
        ("channel-scales", "mamba2", "--grouping", "channel"),
    ):
        small = ("--corpus", root / "corpus", "--windows", 4, "--length", 16)
        assert main([str(a) for a in ("calibrate", root / model, "--out", root / scales, *small, *how)]) == 0
    return root


def call(capsys, *arguments):
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def export(capsys, *arguments):
    return call(capsys, "export", *arguments, "--format", "quamba")


def import_(capsys, *arguments):
    return call(capsys, "import", *arguments, "--format", "quamba")


@pytest.mark.parametrize("name", ["mamba", "mamba2", "grouped"])
def test_there_and_back_is_the_same_folder(name, world, tmp_path, capsys):
    file, back = tmp_path / "new" / "quamba.pt", tmp_path / "new" / "back"
    code, out, err = export(capsys, world / f"{name}-scales", "--out", file)
    assert (code, err) == (0, "")
    assert f"written: {file}" in out
    model = world / ("mamba" if name == "mamba" else "mamba2")
    code, out, err = import_(capsys, file, "--model", model, "--out", back)
    assert (code, err) == (0, "")
    assert f"written: {back}" in out
    for part in ("calibration.json", "scales.safetensors"):
        assert (back / part).read_bytes() == (world / f"{name}-scales" / part).read_bytes()


def test_quambas_own_groups_are_calibrated_with_and_evaluated(world, tmp_path, capsys):
    """What is saved without made_of; eval then reorders the model and reads a scale per group."""
    export(capsys, world / "grouped-scales", "--out", tmp_path / "ours.pt")
    ours = torch.load(tmp_path / "ours.pt", weights_only=True)
    torch.save({key: ours[key] for key in ("act_scales", "reorder_params")}, tmp_path / "theirs.pt")
    code, _, _ = import_(capsys, tmp_path / "theirs.pt", "--model", world / "mamba2", "--out", tmp_path / "back")
    assert code == 0
    assert not Calibration.load(tmp_path / "back").groups[0].keeps_order
    found = []
    for scales in (tmp_path / "back", world / "grouped-scales"):
        evaluated = (
            "eval",
            world / "mamba2",
            "--corpus",
            world / "corpus",
            "--calibration",
            scales,
            "--json",
        )
        code, out, _ = call(capsys, *evaluated)
        assert code == 0
        found.append(next(iter(json.loads(out).values())))
    assert found[0] == found[1]
    assert found[0]["decode_kl"]["value"] > 0


def test_a_file_that_is_there_is_replaced_when_asked(world, tmp_path, capsys):
    file = tmp_path / "quamba.pt"
    file.write_text("mine")
    code, _, err = export(capsys, world / "mamba-scales", "--out", file)
    assert code == 2
    assert "--force replaces it" in err
    assert file.read_text() == "mine"
    code, _, _ = export(capsys, world / "mamba-scales", "--out", file, "--force")
    assert code == 0
    assert len(torch.load(file, weights_only=True)["act_scales"]) == 2


def test_what_is_no_file_is_not_replaced_by_one(world, tmp_path, capsys):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code, _, err = export(capsys, world / "mamba-scales", "--out", pipe, "--force")
    assert code == 2
    assert "is a device or a pipe, not a file" in err
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("command", "given", "model", "out", "says"),
    [
        ("export", "nowhere", None, "x.pt", "calibration.json is missing"),
        ("export", "channel-scales", None, "x.pt", "layers.0.z has a scale per channel"),
        ("export", "mamba-scales", None, ".", "is a folder, not a file"),
        ("export", "mamba-scales", None, "there/x.pt", "is no folder"),
        ("import", "nowhere.pt", "mamba", "x", "is no file"),
        ("import", "there", "mamba", "x", "is nothing that torch.load(weights_only=True) can read"),
        ("import", "mamba.pt", "mamba2", "x", "made for another model than 'mamba2'"),
        ("import", "mamba.pt", "mamba3", "x", "mamba3 is here; a model is a folder"),
        ("import", "mamba.pt", "mamba", "there", "is no folder"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(command, given, model, out, says, world, tmp_path, capsys):
    (tmp_path / "there").touch()
    export(capsys, world / "mamba-scales", "--out", tmp_path / "mamba.pt")
    before = sorted(tmp_path.iterdir())
    given = next((path for path in (world / given, tmp_path / given) if path.exists()), tmp_path / given)
    of = ("--model", world / model) if model else ()
    code, printed, err = call(capsys, command, given, "--format", "quamba", *of, "--out", tmp_path / out)
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
    assert not printed
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", ["export", "import"])
def test_a_format_that_nobody_writes_is_a_matter_of_usage(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "x", "--model", "m", "--out", "y", "--format", "gguf"])
    assert stopped.value.code == 2
    assert "invalid choice: 'gguf'" in capsys.readouterr().err


HOSTILE = "o\x1b[2J\nut"


def test_a_terminal_gets_no_control_characters_of_what_was_written(world, tmp_path, capsys):
    """Each command that says where it wrote to; one line, with the characters spelled out."""
    folders = [tmp_path / name / HOSTILE for name in ("scales", "back", "repository")]
    file, small = tmp_path / f"{HOSTILE}.pt", ("--corpus", world / "corpus", "--windows", 4, "--length", 16)
    for command in (
        ("calibrate", world / "mamba", "--out", folders[0], *small),
        ("export", folders[0], "--out", file, "--format", "quamba"),
        ("import", file, "--model", world / "mamba", "--out", folders[1], "--format", "quamba"),
        ("init", folders[2]),
    ):
        code, out, err = call(capsys, *command)
        assert (code, err) == (0, "")
        assert "\x1b" not in out
        assert any("written: " in line and r"o\x1b[2J\nut" in line for line in out.splitlines())


def test_a_terminal_gets_no_control_characters_of_the_scales_that_are_evaluated():
    headings = _table({HOSTILE: {name: Measurement(0.1, 0.01) for name in METRICS}}).splitlines()[0]
    assert headings.endswith(r"o\x1b[2J\nut")
