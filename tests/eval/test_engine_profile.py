"""`tokenprune profile --engine vllm`, what of it needs no engine. The rest: tests/vllm/test_profile.py."""

import argparse
import importlib.util
import subprocess
import sys
import time

import pytest
import transformers
from PIL import Image

from tokenprune import cli
from tokenprune.eval.minivlm.qwen import PictureProcessor
from tokenprune.eval.profile.clocks import CLOCKS
from tokenprune.eval.profile.engine import verdict
from tokenprune.eval.profile.engine_checkpoint import checkpoint_of, make_checkpoint
from tokenprune.eval.profile.engine_report import draw, table


def _rows(*ratios):
    return [
        {
            "policy": "divprune" if keep < 1 else "full",
            "keep": keep,
            "concurrency": clients,
            "prompt_tokens": 100,
            "requests_per_second": 2.0,
            "ttft_ms": 10.0,
            "throughput_ratio": ratio if keep < 1 else 1.0,
            "ttft_ratio": 1.0,
        }
        for keep in (1.0, 0.25)
        for clients, ratio in ratios
    ]


def test_verdicts():
    assert verdict(_rows((1, 1.2), (8, 1.5))[2:]).startswith("pays at every concurrency: 1.20 to 1.50 times")
    lost = verdict(_rows((32, 0.5), (8, 0.9), (1, 1.2))[3:])
    assert lost == "stops paying at 8 clients; at 32 it has 0.50 times the full model's throughput"


def test_table_and_plot(tmp_path):
    rows = _rows((1, 1.2), (8, 0.9))
    assert len(table(rows, "a title").rows) == 4
    draw(tmp_path / "plot.png", rows, "a title")
    assert Image.open(tmp_path / "plot.png").size[0] > 500


@pytest.mark.parametrize(
    ("config", "tokens"), [("llava-1.5-7b", 576), ("qwen2.5-vl-7b", 256), ("qwen3-vl-2b", 196), ("qwen3-vl-8b", 196)]
)
def test_a_folder_for_a_published_shape(tmp_path, config, tokens):
    where, side = make_checkpoint(config, 2, 3, tmp_path)
    found = transformers.AutoConfig.from_pretrained(where)
    assert found.get_text_config().num_hidden_layers == 2
    tower = found.vision_config
    assert (tower.num_hidden_layers if config.startswith("llava") else tower.depth) == 3
    loader = transformers.AutoProcessor if config.startswith("llava") else PictureProcessor
    processor = loader.from_pretrained(where)
    inputs = processor(images=[Image.new("RGB", (side, side))], text=[processor.image_token], return_tensors="pt")
    token = found.image_token_index if config.startswith("llava") else found.image_token_id
    assert int((inputs["input_ids"] == token).sum()) == tokens


def test_a_shape_without_an_engine_variant(tmp_path):
    with pytest.raises(ValueError, match=r"accepted with --engine vllm: llava-1\.5-7b, qwen2\.5-vl-7b, qwen3"):
        make_checkpoint("llava-next-7b", 2, None, tmp_path)


def test_fewer_layers_of_the_vision_encoder_in_proportion(tmp_path):
    options = argparse.Namespace(
        model=None, config="qwen3-vl-2b", layers=7, vision_layers=None, dtype=None, image_size=None
    )
    checkpoint, side = checkpoint_of(options, tmp_path)
    assert (options.vision_layers, side, checkpoint.dummy) == (6, 448, True)  # of 24, as 7 of 28 decoder layers
    assert transformers.AutoConfig.from_pretrained(checkpoint.model).vision_config.depth == 6


def test_the_processors_clock_counts_what_children_compute():
    code = "import sys; sum(range(5_000_000)); print(flush=True); sys.stdin.read()"
    before, own = CLOCKS["cpu"](), time.process_time()
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        spent, own = CLOCKS["cpu"]() - before, time.process_time() - own
    assert spent > own + 0.03


@pytest.mark.parametrize("option", [["--clock", "cpu"], ["--batched-tokens", "512"]])
def test_options_of_the_engine_alone(option, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["profile", "--model", "embedded", *option])
    assert stop.value.code == 2 and f"{option[0]} goes with --engine vllm" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_the_engine_has_to_be_there(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["profile", "--engine", "vllm", "--model", "embedded"])
    assert stop.value.code == 2 and "pip install '.[vllm]'" in capsys.readouterr().err
