"""The file: readable without running code, whole or absent, of the model it says."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from quambench.calibration.scales import Calibration
from quambench.core.errors import BadArtefact
from quambench.interchange.quamba import to_act_scales
from quambench.interchange.quamba_file import read, write
from quambench.models import ModelConfig
from quambench.models.sites import sites_of

CONFIG = ModelConfig(architecture="mamba", d_model=16, n_layers=1, vocab_size=50, d_state=4, dt_rank=3)
CHECKPOINT = SimpleNamespace(name="tiny", config=CONFIG, digest="m")
SITES = list(sites_of(CONFIG))


def calibration(first=0.5):
    scales = {name: torch.tensor(first + n) for n, name in enumerate(SITES)}
    observers = {name: f"observer of {name}" for name in SITES}
    return Calibration(scales, dict.fromkeys(SITES, "tensor"), observers, 8, "m", "data")


def test_it_says_what_it_was_made_of_and_comes_back(tmp_path):
    path, given = tmp_path / "missing" / "folder" / "scales.pt", calibration()
    write(path, given, "code")
    assert os.listdir(path.parent) == ["scales.pt"]
    stored = torch.load(path, weights_only=True)
    assert stored["made_of"] == {
        "schema": 1,
        "model_digest": "m",
        "data_digest": "data",
        "scales_digest": given.digest,
        "observers": given.observers,
        "quambench": "code",
    }
    assert stored["act_scales"] == to_act_scales(given)[0]
    assert stored["reorder_params"] is None
    found = read(path, CHECKPOINT)
    assert (found.digest, found.data_digest, found.observers) == (given.digest, "data", given.observers)


def test_equal_calibrations_are_equal_bytes_under_any_name(tmp_path):
    for name in ("a.pt", "b.bin"):
        write(tmp_path / name, calibration(), "code")
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.bin").read_bytes()


@pytest.mark.parametrize("broken", ["write_bytes", "replace"])
def test_a_file_that_is_there_stays_whole_when_writing_fails(broken, tmp_path, monkeypatch):
    path = tmp_path / "scales.pt"
    write(path, calibration(), "code")
    before = path.read_bytes()

    def half(self, content):
        with open(self, "wb") as file:
            file.write(bytes(content)[:100])
        raise OSError("no space left on device")

    def fails(*_):
        raise OSError("gone")

    with monkeypatch.context() as patch:
        if broken == "replace":
            patch.setattr(os, "replace", fails)
        else:
            patch.setattr(Path, "write_bytes", half)
        with pytest.raises(OSError, match=r"no space|gone"):
            write(path, calibration(first=2.0), "code")
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["scales.pt"]


@pytest.mark.parametrize("kept", [("act_scales", "reorder_params"), ("act_scales",), ()])
def test_what_quambas_own_objects_were_saved_to_is_read_too(kept, tmp_path):
    path = tmp_path / "raw.pt"
    act_scales, reorder_params = to_act_scales(calibration())
    parts = {"act_scales": act_scales, "reorder_params": reorder_params}
    torch.save({key: parts[key] for key in kept} or act_scales, path)
    found = read(path, CHECKPOINT)
    assert found.digest == calibration().digest
    assert (found.model_digest, found.data_digest, set(found.observers.values())) == ("m", "", {"quamba"})


def changed(**parts):
    act_scales, reorder_params = to_act_scales(calibration())
    made_of = {"schema": 1, "model_digest": "m", "data_digest": "data", "scales_digest": calibration().digest}
    made_of["observers"] = calibration().observers
    made_of |= parts.pop("made_of", {})
    return {"act_scales": act_scales, "reorder_params": reorder_params, "made_of": made_of} | parts


class Runs:
    """What a pickle that runs code on loading is made from."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (changed(made_of={"model_digest": "another"}), "these scales were made for another model than 'tiny'"),
        (changed(made_of={"schema": 2}), "made_of is of schema 2, this version reads 1"),
        (changed(made_of={"scales_digest": calibration(first=2.0).digest}), "not the scales that made_of describes"),
        (changed(act_scales=to_act_scales(calibration(first=2.0))[0]), "not the scales that made_of describes"),
        (changed(made_of={"observers": {"z": "mse"}}), "made_of must name the data and each site's observer"),
        (changed(made_of={"data_digest": None}), "made_of must name the data"),
        (changed(made_of={"observers": None}), "made_of must name the data and each site's observer"),
        (changed() | {"made_of": "me"}, "made_of must be a dict (got str)"),
        (changed(act_scales=[{}, {}]), "layer 0, in_proj:input: missing, and Quamba reads it"),
        ({"scales": []}, "must hold a dict with act_scales and reorder_params, or the list of act_scales"),
        (torch.zeros(3), "must hold a dict with act_scales"),
        ({"act_scales": Runs()}, "is nothing that torch.load(weights_only=True) can read"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_file(content, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file.pt"
    torch.save(content, path)
    with pytest.raises(BadArtefact, match=re.escape(says)) as raised:
        read(path, CHECKPOINT)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists()


def test_changed_without_its_made_of_it_is_somebody_elses(tmp_path):
    content = changed(act_scales=to_act_scales(calibration(first=2.0))[0])
    del content["made_of"]
    torch.save(content, tmp_path / "file.pt")
    assert read(tmp_path / "file.pt", CHECKPOINT).digest == calibration(first=2.0).digest


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_one_line(share, tmp_path):
    path = tmp_path / "file.pt"
    write(path, calibration(), "code")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(BadArtefact, match="cut short") as raised:
        read(path, CHECKPOINT)
    assert "\n" not in str(raised.value)


def test_no_file_is_one_line(tmp_path):
    with pytest.raises(BadArtefact, match="is no file"):
        read(tmp_path / "none.pt", CHECKPOINT)
    with pytest.raises(BadArtefact, match="is a folder, not a file"):
        read(tmp_path, CHECKPOINT)
