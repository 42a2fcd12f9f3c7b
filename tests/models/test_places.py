"""Local folders and the hub: the hub's own client, against a server of this machine that speaks its protocol."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from quambench.core.errors import BadCheckpoint, MissingExtra
from quambench.models import ModelConfig, build
from quambench.models.checkpoint import load_checkpoint, save_checkpoint
from quambench.models.places import Folder, Repository

CONFIG = ModelConfig(architecture="mamba", d_model=8, n_layers=1, vocab_size=264, d_state=3, dt_rank=2)
LIKE_STATE_SPACES = ModelConfig(architecture="mamba", d_model=1, n_layers=1, vocab_size=50280, d_state=1, dt_rank=1)
COMMIT, OTHER = "a" * 40, "b" * 40
NEOX = "EleutherAI/gpt-neox-20b"


@dataclass
class Hub:
    """(repository, revision) -> folder; both `main` and the commit's name serve the same."""

    endpoint: str = ""
    folders: dict[tuple[str, str], Path] = field(default_factory=dict)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)  # repository -> status, error code
    asked: list[str] = field(default_factory=list)  # "repository@revision/file", HEAD and GET

    def publish(self, repository: str, folder: Path, commit: str = COMMIT, names: tuple[str, ...] = ("main",)) -> None:
        for revision in (*names, commit):
            self.folders[repository, revision] = folder
        (folder / ".commit").write_text(commit)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        parts = path.strip("/").split("/")
        repository, revision, file = "/".join(parts[:2]), parts[3].replace("%2F", "/"), "/".join(parts[4:])
        self.asked.append(f"{repository}@{revision}/{file}")
        if repository in self.refused:
            status, code = self.refused[repository]
            return status, {"X-Error-Code": code}, b""
        if not any(name == repository for name, _ in self.folders):
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if (repository, revision) not in self.folders:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        folder = self.folders[repository, revision]
        commit = {"X-Repo-Commit": (folder / ".commit").read_text()}
        if not (folder / file).is_file():
            return 404, commit | {"X-Error-Code": "EntryNotFound"}, b""
        body = (folder / file).read_bytes()
        return 200, commit | {"ETag": f'"{hashlib.sha256(body).hexdigest()}"'}, body


def point_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client reads HF_ENDPOINT once, when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET(body=False)

        def do_GET(self, body: bool = True) -> None:
            status, headers, content = made.answer(self.path)
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made.endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", made.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", made.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture
def make(tmp_path: Path, tokenizer_file: Path) -> Callable[..., Path]:
    def write(name: str, config: ModelConfig = CONFIG, tokenizer: bool = True) -> Path:
        with torch.random.fork_rng():
            torch.manual_seed(len(name))
            save_checkpoint(tmp_path / name, build(config))
        if tokenizer:
            shutil.copy(tokenizer_file, tmp_path / name / "tokenizer.json")
        return tmp_path / name

    return write


def refusal(name: str) -> str:
    with pytest.raises(BadCheckpoint) as error:
        load_checkpoint(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_hub_name_is_fetched(hub: Hub, make: Callable[..., Path]) -> None:
    folder = make("one")
    hub.publish("someone/mamba-x", folder)
    loaded = load_checkpoint("someone/mamba-x")
    assert (loaded.name, loaded.origin) == ("mamba-x", f"hub someone/mamba-x@{COMMIT}")
    assert loaded.digest == load_checkpoint(str(folder)).digest
    assert load_checkpoint(str(folder)).origin == "folder"
    assert not any(".bin" in asked for asked in hub.asked)  # safetensors suffice, if there are any


def test_all_files_are_of_one_commit(hub: Hub, make: Callable[..., Path]) -> None:
    hub.publish("someone/mamba-x", make("one"))
    load_checkpoint("someone/mamba-x")
    assert hub.asked[0].startswith("someone/mamba-x@main/config.json")
    assert all(f"@{COMMIT}/" in asked for asked in hub.asked if "/config.json" not in asked)


@pytest.mark.parametrize("revision", ["v1", OTHER, "refs/pr/3"])
def test_a_revision_is_taken_and_named(hub: Hub, make: Callable[..., Path], revision: str) -> None:
    one, other = make("one"), make("another")
    hub.publish("someone/mamba-x", one)
    hub.publish("someone/mamba-x", other, OTHER, ("v1", "refs/pr/3"))
    loaded = load_checkpoint(f"someone/mamba-x@{revision}")
    assert loaded.name == "mamba-x@" + revision.replace("/", "-")
    assert loaded.origin == f"hub someone/mamba-x@{OTHER}"
    assert loaded.digest == load_checkpoint(str(other)).digest != load_checkpoint("someone/mamba-x").digest


def in_shards(folder: Path, kind: str) -> None:
    """Two files and their index, as transformers names them."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {}
    for i, part in enumerate((sorted(weights)[::2], sorted(weights)[1::2]), 1):
        stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
        file = f"{stem}-0000{i}-of-00002.{suffix}"
        tensors = {name: weights[name] for name in part}
        if kind == "safetensors":
            save_file(tensors, folder / file)
        else:
            torch.save(tensors, folder / file)
        names |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": names}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_are_fetched_as_the_index_says(hub: Hub, make: Callable[..., Path], kind: str) -> None:
    folder = make("one")
    before = load_checkpoint(str(folder))
    in_shards(folder, kind)
    hub.publish("someone/mamba-x", folder)
    assert load_checkpoint("someone/mamba-x").digest == before.digest == load_checkpoint(str(folder)).digest


def test_what_is_cached_serves_offline(hub: Hub, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make("one")
    in_shards(folder, "bin")
    hub.publish("someone/mamba-x", folder)
    online = load_checkpoint("someone/mamba-x")
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = load_checkpoint("someone/mamba-x")
    assert (offline.digest, offline.origin) == (online.digest, online.origin)
    assert hub.asked == []
    message = refusal("someone/else")
    assert "someone/else could not be fetched" in message
    assert "the local cache has no config.json, and the hub cannot be reached" in message


def test_weights_that_the_cache_lacks_offline(
    hub: Hub, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make("one")
    weights = (folder / "model.safetensors").rename(folder / "later")
    hub.publish("someone/mamba-x", folder)
    assert "has no weights (none of model.safetensors, " in refusal("someone/mamba-x")
    weights.rename(folder / "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refusal("someone/mamba-x")
    assert "the local cache has no weights (none of model.safetensors, " in message
    assert "pytorch_model.bin.index.json), and the hub cannot be reached" in message


def test_a_tokenizer_that_the_cache_lacks_offline(
    hub: Hub, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named, though tokenizer_config.json was looked for after it."""
    hub.publish("someone/mamba-x", make("one", tokenizer=False))
    assert refusal("someone/mamba-x").endswith("has no tokenizer.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "the local cache has no tokenizer.json, and the hub cannot be reached" in refusal("someone/mamba-x")


def test_no_server_at_all(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("http://127.0.0.1:9", monkeypatch)
    assert "the local cache has no config.json, and the hub cannot be reached" in refusal("someone/mamba-x")


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "RepoNotFound", "there is none of that name, or it is private"),
        (401, "RepoNotFound", "there is none of that name, or it is private"),
        (403, "GatedRepo", "it is gated: accept its terms"),
        (404, "RevisionNotFound", "it has no revision 'v9'"),
    ],
)
def test_refusals_of_the_hub_are_one_line(hub: Hub, status: int, code: str, message: str) -> None:
    hub.refused["someone/mamba-x"] = status, code
    found = refusal("someone/mamba-x@v9")
    assert found.startswith("someone/mamba-x@v9 could not be fetched from the Hugging Face hub: " + message)
    assert "a local folder or a bundled model works too" in found


def test_a_config_that_cannot_run_costs_no_download_of_weights(hub: Hub, make: Callable[..., Path]) -> None:
    folder = make("one")
    (folder / "config.json").write_text(json.dumps({"model_type": "jamba"}))
    hub.publish("someone/jamba", folder)
    assert "model_type must be 'mamba' or 'mamba2' (got 'jamba')" in refusal("someone/jamba")
    assert [a for a in hub.asked if "config.json" not in a] == []


def test_a_megatron_checkpoint_is_told(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "mamba2-8b-3t-4k"
    (folder / "release").mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("release")
    hub.publish("someone/mamba2-8b-3t-4k", folder)
    for name in ("someone/mamba2-8b-3t-4k", str(folder)):
        assert "has no config.json; a checkpoint of Megatron must be converted" in refusal(name)
    (folder / "latest_checkpointed_iteration.txt").unlink()
    assert refusal(str(folder)).endswith("has no config.json")


# --- tokenizers -----------------------------------------------------------------------------------


@pytest.fixture
def neox(hub: Hub, tmp_path: Path, tokenizer_file: Path) -> None:
    (tmp_path / "neox").mkdir()
    shutil.copy(tokenizer_file, tmp_path / "neox" / "tokenizer.json")
    hub.publish(NEOX, tmp_path / "neox")


@pytest.mark.usefixtures("neox")
@pytest.mark.parametrize("where", ["hub", "folder"])
def test_what_is_like_state_spaces_models_takes_the_tokenizer_they_were_trained_with(
    hub: Hub, make: Callable[..., Path], where: str
) -> None:
    folder = make("one", LIKE_STATE_SPACES, tokenizer=False)
    hub.publish("state-spaces/mamba-x", folder)
    assert load_checkpoint("state-spaces/mamba-x" if where == "hub" else str(folder)).tokenizer.vocab_size == 257
    assert any(asked.startswith(NEOX) and asked.endswith("/tokenizer.json") for asked in hub.asked)


@pytest.mark.usefixtures("neox")
def test_another_vocabulary_is_not_taken_for_it(hub: Hub, make: Callable[..., Path]) -> None:
    assert refusal(str(make("one", tokenizer=False))).endswith("has no tokenizer.json")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("file", "key"), [("config.json", "tokenizer_name_or_path"), ("tokenizer_config.json", "name_or_path")]
)
def test_a_tokenizer_named_by_the_checkpoint_is_taken(
    hub: Hub, make: Callable[..., Path], tmp_path: Path, tokenizer_file: Path, file: str, key: str
) -> None:
    folder = make("one", tokenizer=False)
    path = folder / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | {key: "someone/words"}))
    (tmp_path / "words").mkdir()
    shutil.copy(tokenizer_file, tmp_path / "words" / "tokenizer.json")
    hub.publish("someone/words", tmp_path / "words")
    assert load_checkpoint(str(folder)).tokenizer.vocab_size == 257


def test_a_tokenizer_that_cannot_be_fetched(
    hub: Hub, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make("one", LIKE_STATE_SPACES, tokenizer=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refusal(str(folder))
    assert message.startswith(f"{folder} has no tokenizer.json, and there is no getting {NEOX}'s")
    assert "the local cache has no tokenizer.json" in message
    assert message.endswith("put tokenizer.json there")


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("state-spaces/mamba2-2.7b", "mamba2-2.7b"),
        ("org/name@v1.0", "name@v1.0"),
        ("org/name@refs/pr/3", "name@refs-pr-3"),
    ],
)
def test_names_of_the_hub(text: str, short: str) -> None:
    repository = Repository.parse(text)
    assert repository is not None
    assert (str(repository), repository.short) == (text, short)


@pytest.mark.parametrize("text", ["", "name", "a/b/c", "../x", "org/name@", "org/name@-x", "org/name@a@b", "/x/y"])
def test_what_is_no_name_of_the_hub(text: str) -> None:
    assert Repository.parse(text) is None


def test_the_client_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if not installed
    with pytest.raises(MissingExtra, match=r"quambench\[hub\]"):
        load_checkpoint("someone/mamba-x")


def test_a_folder_finds_files_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    assert Folder(tmp_path).find("config.json") is None
    (tmp_path / "x").write_text("")
    assert Folder(tmp_path).find("x") == tmp_path / "x"
