"""How commands end: one line and a status for what users can change, a traceback for what nobody expects."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tokenprune import cli, pruning
from tokenprune.commands.failures import Interruptions, failure
from tokenprune.eval.errors import CommandError
from tokenprune.policies import make_policy
from tokenprune.validate import whole

from .families import get_model

RUN = [sys.executable, "-m", "tokenprune"]


def told(call):
    """What `failure` makes of the error of a call."""
    try:
        call()
    except BaseException as error:
        return failure(error, Interruptions())
    raise AssertionError("no error")


def raising(error):
    def call():
        raise error

    return call


@pytest.mark.parametrize(
    ("call", "message", "status"),
    [
        (raising(KeyboardInterrupt()), "interrupted", 130),
        (raising(CommandError("two\n  lines")), "two lines", 2),
        (raising(BrokenPipeError()), "", 1),
        (lambda: Path("/nowhere/file").read_text(), "/nowhere/file: No such file or directory", 2),
        (lambda: os.listdir("/nowhere"), "/nowhere: No such file or directory", 2),
        (raising(OSError(28, "No space left on device")), "No space left on device", 2),
        (raising(ConnectionError("nobody answers")), "nobody answers", 2),
        (lambda: __import__("flash_attn"), "No module named 'flash_attn'", 2),
        (raising(ImportError("\nX requires\nthe package Y")), "X requires the package Y", 2),
        (lambda: make_policy("nope"), None, 2),
        (lambda: pruning(get_model("llava"), "divprune", 0.0).__enter__(), None, 2),
    ],
)
def test_what_is_expected_is_one_line(call, message, status):
    found = told(call)
    assert found.status == status and "\n" not in found.message
    assert message is None or found.message == message


@pytest.mark.parametrize(
    "call",
    [
        lambda: np.zeros(3).reshape(2, 2),
        lambda: int("x"),
        lambda: json.loads("{"),
        lambda: {}["key"],
        lambda: __import__("tokenprune.nothing"),
        lambda: whole(object(), "name"),
        raising(RuntimeError("CUDA error")),
        raising(AssertionError()),
        raising(MemoryError()),
    ],
)
def test_what_nobody_expects_keeps_its_traceback(call):
    assert told(call) is None


def test_an_import_that_was_interrupted_is_an_interruption():
    interruptions = Interruptions()
    with interruptions.noted(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert failure(ImportError("cannot load module more than once per process"), interruptions).status == 130


def test_a_failing_command_tells_its_name_and_leaves_with_its_status(monkeypatch, capsys):
    from tokenprune.commands import models

    for error, status, text in (
        (CommandError("no luck"), 2, "tokenprune models: no luck\n"),
        (KeyboardInterrupt(), 130, "tokenprune models: interrupted\n"),
    ):
        monkeypatch.setattr(models, "_run", lambda args, error=error: raising(error)())
        with pytest.raises(SystemExit) as stop:
            cli.main(["models"])
        assert stop.value.code == status and capsys.readouterr().err == text
    monkeypatch.setattr(models, "_run", lambda args: raising(CommandError("no luck"))())
    with pytest.raises(SystemExit):
        cli.main(["models", "-vv"])
    shown = capsys.readouterr().err
    assert "Traceback" in shown and shown.endswith("tokenprune models: no luck\n")
    monkeypatch.setattr(models, "_run", lambda args: raising(RuntimeError("a bug"))())
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["models"])


def test_a_run_that_can_go_on_says_so(monkeypatch, capsys, tmp_path):
    from tokenprune.commands import bench

    monkeypatch.setattr(bench, "_run", lambda args: raising(KeyboardInterrupt())())
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "--policy", "grid", "--out", str(tmp_path)])
    assert stop.value.code == 130
    expected = f"tokenprune bench: interrupted; the same command goes on from {tmp_path}\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "--model", "./embeded"], "did you mean embedded?"),
        (["show", "--image", "/nowhere.jpg"], "/nowhere.jpg: No such file or directory"),
        (["show", "--image", __file__], f"{__file__} is no picture"),
        (["show", "--image", "http://127.0.0.1:9/a.png"], "http://127.0.0.1:9/a.png cannot be fetched"),
        (["show", "--device", "cuda:77"], "device cuda:77 cannot be used"),
        (["report", "--device", "cuda:77"], "device cuda:77 cannot be used"),
        (["profile", "--model", "embedded", "--device", "cuda:77"], "device cuda:77 cannot be used"),
        (["profile", "--model", "./embeded"], "did you mean embedded?"),
        (["profile", "--model", "embedded", "--attn", "flash_attention_2"], "needs the package flash-attn"),
    ],
)
def test_commands_tell_in_one_line_what_is_wrong(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tokenprune {arguments[0]}: ") and message in line


@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [(["eval"], "lmms_eval", "eval"), (["profile", "--engine", "vllm"], "vllm", "vllm")],
)
def test_what_is_not_installed_comes_with_what_to_install(arguments, package, extra, capsys):
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert f"pip install '.[{extra}]'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["policies", "policies --json", "models", "policies auto", "--help"])
def test_a_reader_that_stops_is_no_error(command):
    code = f"{sys.executable} -m tokenprune {command} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode in (0, 1)


@pytest.mark.parametrize("command", [["demo", "--samples", "100000"], ["bench", "--samples", "100000"]])
def test_ctrl_c_while_a_command_works(command, tmp_path):
    name = "demo.png" if command[0] == "demo" else "bench"
    process = subprocess.Popen(
        [*RUN, *command, "--policy", "grid", "--out", str(tmp_path / name)], stderr=subprocess.PIPE, text=True
    )
    time.sleep(5)  # wherever it is by then: in an import, in a model
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=120)
    assert process.returncode in (130, -signal.SIGINT)  # a shell shows both as 130
    (line,) = text.splitlines()
    assert line.startswith("tokenprune") and "interrupted" in line
