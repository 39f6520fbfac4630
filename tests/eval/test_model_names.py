"""What `--model` names, and what is said of names that are none."""

import http.server
import json
import threading

import huggingface_hub
import pytest
import torch
from transformers import BertConfig

from tokenprune.eval import minivlm
from tokenprune.eval.checkpoints import load_checkpoint
from tokenprune.eval.errors import CommandError
from tokenprune.eval.machine import pick_device
from tokenprune.eval.model_names import check_attention, find_checkpoint

NAMES = {"embedded": "llava", "embedded-qwen": "qwen", "embedded-qwen3": "qwen3", "embedded-qwen-pages": "qwen-pages"}
NAMES |= {name: name for name in NAMES.values()}


@pytest.fixture(autouse=True)
def hub(monkeypatch, tmp_path):
    """Nobody answers under the hub's address, and the cache is empty."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def answering(monkeypatch):
    """A hub that answers: the status by the name of a model, and which models it was asked for."""
    statuses, asked = {}, []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.removeprefix("/api/models/").partition("?")[0].partition("/revision")[0]
            asked.append(name)
            status = statuses.get(name, 404)
            body = json.dumps({"id": name, "_id": "0", "siblings": [], "tags": [], "downloads": 0}).encode()
            self.send_response(status)
            if status in (403, 404):
                self.send_header("X-Error-Code", {403: "GatedRepo", 404: "RepoNotFound"}[status])
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield statuses, asked
    server.shutdown()
    server.server_close()


def cached(folder, name):
    """A checkpoint's config in the hub's cache."""
    model = folder / f"models--{name.replace('/', '--')}"
    snapshot = model / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc")
    return str(snapshot)


@pytest.mark.parametrize("name", NAMES)
def test_embedded_models_have_names(name):
    assert find_checkpoint(name) == str(minivlm.WEIGHTS[NAMES[name]])


def test_a_folder_comes_first_but_for_embedded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert find_checkpoint("llava") == str(tmp_path / "llava") and find_checkpoint(str(tmp_path / "qwen")) == str(
        tmp_path / "qwen"
    )
    assert find_checkpoint("embedded") == str(minivlm.WEIGHTS["llava"])


def test_what_is_no_checkpoint_on_this_machine(tmp_path):
    (tmp_path / "file").write_text("")
    for name, message in (
        (tmp_path, "is a folder without a config.json"),
        (tmp_path / "file", "is a file; name the folder"),
        (tmp_path / "nowhere", "there is no folder .*nowhere; Accepted: embedded, embedded-qwen, embedded-qwen3, "),
        ("./embedded", r"there is no folder \./embedded"),
        ("a/b/c", "there is no folder a/b/c"),
    ):
        with pytest.raises(CommandError, match=message):
            find_checkpoint(str(name))


@pytest.mark.parametrize(("name", "near"), [("embeded", "embedded"), ("Qwen2", "qwen"), ("lava", "llava")])
def test_a_near_name_is_suggested_without_a_network(name, near):
    message = f"there is no folder {name}, and the Hugging Face hub cannot be asked for it .*did you mean {near}"
    with pytest.raises(CommandError, match=message):
        find_checkpoint(name)


def test_the_hub_is_asked_once(answering):
    statuses, asked = answering
    with pytest.raises(CommandError, match="no model someone/nothing on the Hugging Face hub; Accepted"):
        find_checkpoint("someone/nothing")
    assert asked == ["someone/nothing"]
    statuses["someone/something"] = 200
    assert find_checkpoint("someone/something") == "someone/something"
    statuses["someone/odd"] = 500
    assert find_checkpoint("someone/odd") == "someone/odd"  # let transformers try
    assert asked[1:] == ["someone/something", "someone/odd"]
    statuses["someone/gated"] = 403
    with pytest.raises(CommandError, match="someone/gated is gated: accept its terms"):
        find_checkpoint("someone/gated")


def test_the_cache_serves_without_a_network(hub, answering, monkeypatch):
    statuses, _ = answering
    folder = cached(hub, "someone/something")
    assert find_checkpoint("someone/something") == folder  # deleted from the hub
    statuses["someone/something"] = 200
    assert find_checkpoint("someone/something") == "someone/something"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert find_checkpoint("someone/something") == folder


def test_a_checkpoint_that_is_no_vision_language_model_is_named(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(CommandError, match=f"{tmp_path} cannot be loaded: "):
        load_checkpoint(str(tmp_path), torch.float32, torch.device("cpu"))


def test_what_is_not_installed_is_named():
    with pytest.raises(CommandError, match="flash_attention_2 needs the package flash-attn"):
        load_checkpoint("embedded", torch.float32, torch.device("cpu"), "flash_attention_2")
    for name in (None, "sdpa", "eager"):
        check_attention(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize("name", ["cuda", "cuda:3", "nonsense", "cpu:x"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(CommandError, match=f"device {name} cannot be used on this machine, cpu can: "):
        pick_device(name)
    assert pick_device(None) == pick_device("cpu") == torch.device("cpu")
