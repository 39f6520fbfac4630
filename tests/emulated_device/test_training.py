"""Training of the embedded models on a device that is not the host."""

import json
import os
import sys

import pytest
import torch

from tokenprune.eval.minivlm import train
from tokenprune.eval.minivlm.data import TYPES

from .device import DEVICE, device_mode


@pytest.mark.skipif(os.environ.get("FULL") != "1", reason="takes as long as all else on the device; FULL=1 runs it")
@pytest.mark.parametrize("name", ["llava", "qwen", "qwen3"])
def test_a_step_of_each_stage(name, tmp_path, monkeypatch):
    """On the device as on the host: the same draws, and weights that are saved from there."""
    monkeypatch.setattr(train.Trainer, "validate", lambda self: dict.fromkeys(TYPES, 0.0))
    monkeypatch.setattr(train.Curve, "EVERY", 1)
    seen = []
    step = train.Optimizer.step
    monkeypatch.setattr(train.Optimizer, "step", lambda self, loss: seen.append(loss.device) or step(self, loss))
    options = ["--scenes", "12", "--steps", "1", "2", "--batch", "4", "--threads", "1", "--fp32", "--fast"]
    monkeypatch.setattr(
        sys, "argv", ["train", "--model", name, "--out", str(tmp_path), *options, "--device", str(DEVICE)]
    )
    with device_mode(), torch.enable_grad():
        train.main()
    assert seen == [DEVICE] * 3
    record = json.loads((tmp_path / "training.json").read_text())
    assert f"--device {DEVICE}" in record["command"]
    assert (tmp_path / "model.safetensors").is_file()
