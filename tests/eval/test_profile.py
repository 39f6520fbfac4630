"""The profiler: what it counts is right, and what it says follows from it."""

import json

import pytest
import torch
import transformers

from tokenprune import cli
from tokenprune.eval.minivlm import load
from tokenprune.eval.profile import CONFIGS, shapes
from tokenprune.eval.profile.command import noise_inputs
from tokenprune.eval.profile.measure import count_flops, decoder_flops, profile, verdict
from tokenprune.eval.setting import PruningSetting
from tokenprune.patches.modules import base_of

# Parameters that the published checkpoints have, in thousands of millions.
SIZES = {
    "llava-1.5-7b": 7.06,
    "llava-next-7b": 7.06,
    "llava-onevision-7b": 8.03,
    "qwen2.5-vl-7b": 8.29,
    "qwen3-vl-8b": 8.77,
}


@pytest.mark.parametrize("name", SIZES)
def test_shapes_are_the_published_ones(name):
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(
            shapes.SHAPES[name].build(shapes.SHAPES[name].layers)
        )
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(SIZES[name], abs=0.01)


def test_every_shape_has_its_published_size_here():
    assert set(CONFIGS) == set(shapes.SHAPES) == set(SIZES)


@pytest.fixture(scope="module")
def embedded():
    model, processor = load()
    return model, noise_inputs(processor, shapes.Request(batch=2, side=96))


def test_closed_formula_is_what_torch_counts(embedded):
    model, inputs = embedded
    with count_flops() as counter, torch.inference_mode():
        out = model(**inputs, use_cache=True, logits_to_keep=1)
    by_module = counter.get_flop_counts()
    layers = base_of(model).get_submodule("language_model").layers
    names = [name for name, module in model.named_modules() if module in set(layers)]
    prefix = type(model).__name__
    counted = sum(sum(by_module[f"{prefix}.{name}"].values()) for name in names)
    assert decoder_flops(model, out.past_key_values) == counted


def test_profile_of_the_embedded_model(embedded):
    model, inputs = embedded
    settings = [PruningSetting("divprune", 0.25), PruningSetting("divprune+fastv", 0.25), PruningSetting("todre", 10)]
    rows = profile(model, inputs, settings, new_tokens=3, rounds=2)
    assert [row["policy"] for row in rows] == ["full", "divprune", "divprune+fastv", "todre"]
    full, divprune, both, todre = rows
    n = divprune["visual_tokens"]
    assert (n, divprune["kept"], todre["kept"]) == (288, 72, 20)
    assert both["kept"] == (2 * 144 + 2 * 72) / 4  # half enters, a quarter is left for two layers of four
    assert full["prefill_saving_theoretical"] == full["prefill_saving_realised"] == 0
    for row in rows:
        for name in ("vision_ms", "prefill_ms", "decode_ms_per_token", "total_ms", "flops", "peak_bytes"):
            assert row[name] > 0
        low, high = row["prefill_ms_quartiles"]
        assert low <= row["prefill_ms"] <= high
        assert row["ttft_ms"] < row["total_ms"]
    for row in (divprune, both, todre):
        assert 0 < row["select_ms"] < row["prefill_ms"]
        assert row["flops"] < full["flops"] and row["kv_cache_bytes"] < full["kv_cache_bytes"]
        assert 0.3 < row["prefill_saving_theoretical"] < 1
    # keys and values of one token, in every layer, float32
    text = model.config.text_config
    token = text.num_hidden_layers * 2 * 4 * text.hidden_size
    assert full["kv_cache_bytes"] - divprune["kv_cache_bytes"] == (n - 72) * token
    assert not any(hasattr(base_of(model), name) for name in ("_tokenprune",))
    assert "get_image_features" not in vars(base_of(model))  # its clock is gone


def test_too_few_tokens_to_decode(embedded):
    with pytest.raises(ValueError, match="new_tokens=1 must be at least 2"):
        profile(*embedded, [], new_tokens=1)


def line(vision, select, prefill, decode, full_prefill=100.0):
    return {
        "vision_ms": vision,
        "select_ms": select,
        "prefill_ms": prefill,
        "ttft_ms": vision + prefill,
        "total_ms": vision + prefill + decode,
        "prefill_saving_realised": 1 - prefill / full_prefill,
    }


@pytest.mark.parametrize(
    ("full", "row", "words"),
    [
        (line(50, 0, 100, 50), line(50, 1, 30, 50), "saves 70% of the prefill and 35% of the request"),
        (line(5000, 0, 100, 50), line(5000, 1, 30, 50), "gains under 5%: 1.4% of the request; vision-bound"),
        (line(50, 0, 100, 9000), line(50, 1, 30, 9000), "gains under 5%: 0.8% of the request; decode-bound"),
        (line(50, 0, 100, 50), line(50, 90, 120, 50), "loses 10.0% of the request; selector-bound"),
        (line(10, 0, 100, 10), line(10, 0, 99, 10), "gains under 5%: 0.8% of the request; the prefill itself"),
    ],
)
def test_verdicts(full, row, words):
    assert verdict(row, full).startswith(words)


def test_command_writes_figures_and_a_plot(tmp_path, capsys):
    files = ["--json", str(tmp_path / "deep" / "p.json"), "--plot", str(tmp_path / "deep" / "p.png")]
    options = ["--policy", "random,divprune+fastv", "--keep", "0.25,9", "--new-tokens", "2", "--rounds", "1"]
    cli.main(["profile", "--model", "embedded", *options, *files])
    out = capsys.readouterr().out
    assert "divprune+fastv 9" in out and "of the request" in out
    written = json.loads((tmp_path / "deep" / "p.json").read_text())
    assert [(row["policy"], row["keep"]) for row in written["rows"]] == [
        ("full", 1.0),
        ("random", 0.25),
        ("random", 9),
        ("divprune+fastv", 0.25),
        ("divprune+fastv", 9),
    ]
    assert written["machine"]["torch"] == torch.__version__
    assert (tmp_path / "deep" / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--policy", "nope"], "unknown policy 'nope'"),
        (["--keep", "1.5"], "keep=1.5"),
        (["--config", "gpt-2"], "invalid choice: 'gpt-2'"),
        (["--model", "/no/such/place"], "tokenprune profile:"),
        (["--model", "embedded", "--new-tokens", "1"], "new_tokens=1 must be at least 2"),
    ],
)
def test_bad_options_are_named(options, words, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["profile", *options])
    assert words in f"{error.value} {capsys.readouterr().err}"
