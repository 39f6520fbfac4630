"""The profiler: what it counts is right, and what it says follows from it."""

import functools
import io
import json
import re

import pytest
import torch
import transformers
from rich.console import Console

from tokenprune import cli
from tokenprune.eval.minivlm import load
from tokenprune.eval.profile import CONFIGS, shapes
from tokenprune.eval.profile.command import noise_inputs
from tokenprune.eval.profile.counting import busy_ms, count_flops, decoder_flops, peak_bytes
from tokenprune.eval.profile.measure import profile, verdict
from tokenprune.eval.profile.random_weights import BLOCK, CheapRandom
from tokenprune.eval.profile.report import tables
from tokenprune.eval.profile.vision_layers import with_vision_layers
from tokenprune.eval.profile.work import Costs, Work, WorkBar
from tokenprune.eval.setting import PruningSetting
from tokenprune.patches.modules import base_of
from tokenprune.patches.packed_tower import no_packed_geometry

# Parameters that the published checkpoints have, in thousands of millions.
SIZES = {
    "llava-1.5-7b": 7.06,
    "llava-next-7b": 7.06,
    "llava-onevision-7b": 8.03,
    "qwen2.5-vl-7b": 8.29,
    "qwen3-vl-2b": 2.13,
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
    assert both["kept"] == 72  # 106 of 288 enter, and 38 are left for two layers of four
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


def test_what_is_encoded_once_counts_as_if_it_was_encoded_each_time(embedded):
    model, inputs = embedded
    encoded = []
    original = base_of(model).get_image_features
    counted = functools.wraps(original)(lambda *a, **k: encoded.append(1) or original(*a, **k))
    base_of(model).get_image_features = counted
    settings = [
        PruningSetting("divprune", 0.25),
        PruningSetting("fastv@final", 0.25),
        PruningSetting("visionzip", 0.25),
    ]
    rows = profile(model, inputs, settings, new_tokens=2, rounds=2)
    # once to count, twice to time; visionzip reads the encoder: counted once, two rounds to warm up and two that count
    assert len(encoded) == 1 + 2 + (1 + 2 + 2)
    del base_of(model).get_image_features
    full, *pruned = rows
    assert full["vision_ms"] == pruned[0]["vision_ms"] == pruned[1]["vision_ms"] != pruned[2]["vision_ms"]
    for row, setting in zip(rows, [PruningSetting(), *settings], strict=True):
        with torch.inference_mode(), setting.context(model), count_flops() as counter:
            forward = lambda: model(**inputs, use_cache=True, logits_to_keep=1)
            peak = peak_bytes(forward, model.device)
        assert row["flops"] == counter.get_total_flops()
        assert row["peak_bytes"] == pytest.approx(peak, rel=0.1)
        assert row["total_ms"] >= row["vision_ms"] + row["prefill_ms"]


@pytest.mark.parametrize("rounds", [1, None])
def test_a_bar_says_from_the_start_what_is_left(embedded, rounds):
    model, inputs = embedded
    settings = [PruningSetting("divprune", 0.25), PruningSetting("visionzip", 9)]
    costs = Costs.of(model, inputs, new_tokens=2)
    weights = sum(p.numel() for p in base_of(model).language_model.layers.parameters())
    assert costs.visual == 2 * weights * 288
    assert costs.prefill(settings[1]) - costs.text == pytest.approx(costs.visual * 9 / 288)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    with WorkBar(console, costs.total(settings, rounds or 5), "cpu") as bar:
        bar.progress.refresh()
        assert re.search(r"about 0:\d\d:\d\d left", screen.getvalue())
        profile(model, inputs, settings, 2, rounds, Work(costs, [PruningSetting(), *settings], bar))
        task = bar.progress.tasks[0]
        assert task.completed == pytest.approx(task.total)
        bar.progress.refresh()
    assert "about 0:00:00 left" in screen.getvalue()


def test_fewer_rounds_where_they_take_long(embedded, monkeypatch):
    monkeypatch.setattr("tokenprune.eval.profile.measure.SECONDS", 0.0)
    assert [row["rounds"] for row in profile(*embedded, [], new_tokens=2, rounds=None)] == [3]
    assert [row["rounds"] for row in profile(*embedded, [], new_tokens=2, rounds=4)] == [4]


@pytest.mark.skipif(no_packed_geometry() is not None, reason="this transformers has no seam in its towers")
def test_the_encoder_counts_what_it_ran():
    model, processor = load("qwen")
    inputs = noise_inputs(processor, shapes.Request(side=96))
    settings = [PruningSetting("divprune", 0.25), PruningSetting("divprune@pixels", 0.25)]
    full, late, early = profile(model, inputs, settings, new_tokens=2, rounds=1)
    assert late["kept"] == early["kept"] == early["visual_tokens"] / 4
    assert full["vision_flops"] == late["vision_flops"] > 2 * early["vision_flops"] > 0
    saved = full["vision_flops"] - early["vision_flops"]
    assert late["flops"] - early["flops"] == saved
    assert early["vision_saving_realised"] != 0 == full["request_saving_realised"]


def test_slow_encoders_run_once_less(embedded, monkeypatch):
    monkeypatch.setattr("tokenprune.eval.profile.measure._VISION_SECONDS", 1e-6)
    rows = profile(*embedded, [PruningSetting("divprune", 0.25)], new_tokens=2, rounds=3)
    assert rows[0]["vision_ms_quartiles"] == [rows[0]["vision_ms"]] * 2 == rows[1]["vision_ms_quartiles"]


@pytest.mark.parametrize(
    ("name", "layers", "depth", "named"),
    [
        ("qwen2.5-vl-7b", 8, 8, [7]),
        ("qwen2.5-vl-7b", 16, 16, [7, 15]),
        ("qwen2.5-vl-7b", 3, 3, [2]),
        ("qwen3-vl-8b", 9, 9, [8]),
        ("qwen3-vl-2b", 24, 24, [5, 11, 17]),
        ("llava-1.5-7b", 4, 4, None),
    ],
)
def test_fewer_layers_of_the_encoder(name, layers, depth, named):
    vision = with_vision_layers(shapes.config_of(name, 1), layers).vision_config
    assert getattr(vision, "depth", getattr(vision, "num_hidden_layers", None)) == depth
    assert getattr(vision, "fullatt_block_indexes", getattr(vision, "deepstack_visual_indexes", None)) == named
    with pytest.raises(ValueError, match="--vision-layers 99: the vision encoder of this model has"):
        with_vision_layers(shapes.config_of(name, 1), 99)


@pytest.mark.parametrize(
    ("options", "depth"),
    [
        (["--config", "qwen2.5-vl-7b"], 32),
        (["--config", "qwen2.5-vl-7b", "--layers", "7"], 8),
        (["--config", "qwen2.5-vl-7b", "--layers", "1"], 2),
        (["--config", "qwen2.5-vl-7b", "--layers", "7", "--policy", "flowcut"], 32),
        (["--config", "llava-1.5-7b", "--layers", "8", "--vision-layers", "5"], 5),
    ],
)
def test_the_encoder_has_the_decoder_s_share(options, depth, monkeypatch):
    """Unless a number is given, or a policy acts between its layers."""

    class Built(Exception):
        pass

    def build(config, *_):
        raise Built(getattr(config.vision_config, "depth", getattr(config.vision_config, "num_hidden_layers", None)))

    monkeypatch.setattr(shapes, "build", build)
    monkeypatch.setattr("tokenprune.eval.profile.command.reachable", lambda model, settings, say: settings)
    with pytest.raises(Built, match=f"^{depth}$"):
        cli.main(["profile", *options])


def test_too_few_tokens_to_decode(embedded):
    with pytest.raises(ValueError, match="new_tokens=1 must be at least 2"):
        profile(*embedded, [], new_tokens=1)


def line(vision, select, prefill, decode, full_prefill=100.0, tower=1.0):
    return {
        "vision_flops": 1e12 * tower,
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
        (line(50, 0, 100, 50), line(50, 1, 30, 50), "saves 35% of the request (70% of the prefill); "),
        (
            line(300, 0, 100, 100),
            line(100, 1, 30, 100, tower=0.3),
            "saves 54% of the request (70% of the prefill, 67% of the vision encoder); the first token comes 3.1 times",
        ),
        (
            line(5000, 0, 100, 50),
            line(5000, 1, 30, 50),
            "gains under 5%: 1.4% of the request; vision-bound: the encoder takes 97%",
        ),
        (line(50, 0, 100, 9000), line(50, 1, 30, 9000), "gains under 5%: 0.8% of the request; decode-bound"),
        (line(50, 0, 100, 50), line(50, 90, 120, 50), "loses 10.0% of the request; selector-bound"),
        (line(10, 0, 100, 10), line(10, 0, 99, 10), "gains under 5%: 0.8% of the request; the prefill itself"),
    ],
)
def test_verdicts(full, row, words):
    assert verdict(row, full).startswith(words)


def test_a_gpu_that_waits_for_launches_is_named(embedded):
    full, row = line(50, 0, 100, 50), line(50, 1, 30, 50)
    busy = {**row, "ttft_gpu_ms": 60.0}
    assert verdict(busy, full | {"ttft_gpu_ms": 140.0}) == verdict(row, full)
    waits = verdict({**row, "ttft_gpu_ms": 20.0}, full | {"ttft_gpu_ms": 45.0})
    assert "Launch-bound: up to the first token the GPU computes for 45 of 150 ms (full) and 20 of 80 ms" in waits
    rows = profile(*embedded, [PruningSetting("grid", 0.25)], new_tokens=2, rounds=1)
    wide = Console(width=300, file=io.StringIO())
    assert "GPU" not in [column.header for column in tables(rows, "", wide)[0].columns]
    assert busy_ms(lambda: None, torch.device("cpu")) is None
    rows = [{**row, "ttft_gpu_ms": 12.34} for row in rows]
    (table,) = tables(rows, "", wide)
    wide.print(table)
    assert "12.3" in wide.file.getvalue() and "encoder included" in wide.file.getvalue()


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
        (["--images", "0"], "'0' is no whole number above 0"),
    ],
)
def test_bad_options_are_named(options, words, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["profile", *options])
    assert words in f"{error.value} {capsys.readouterr().err}"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "embedded", "--frames", "4"], "--frames 4: llava takes no videos"),
        (["--config", "llava-next-7b", "--frames", "4"], "--frames 4: llava_next takes no videos"),
        (["--config", "qwen3-vl-8b", "--frames", "4"], "profile its videos with --model"),
        (["--config", "llava-1.5-7b", "--image-size", "448"], "llava resizes every image to 336"),
        (["--model", "embedded", "--layers", "2"], "--layers goes with --config"),
        (["--config", "qwen2.5-vl-7b", "--frames", "4", "--images", "2"], "--images and --frames do not go together"),
        (["--model", "embedded", "--requests", "4"], "--requests goes with --engine vllm"),
        (["--model", "embedded", "--concurrency", "1"], "--concurrency goes with --engine vllm"),
        (["--model", "embedded", "--json", "TMP"], "TMP is a folder; name a file in it"),
        (["--model", "embedded", "--plot", "TMP/plot.txt"], "ends in .txt; accepted: .png"),
        (["--model", "embedded", "--plot", "TMP/file/plot.png"], "TMP/file is a file, not a folder"),
        (["--model", "embedded", "--plot", "TMP/x.svg", "--json", "TMP/x.svg"], "--json and --plot name the same file"),
    ],
)
def test_what_does_not_apply_is_refused_in_one_line(options, words, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    nothing = lambda *a, **k: pytest.fail("a model was made")
    monkeypatch.setattr("tokenprune.eval.profile.command.load_model", nothing)
    monkeypatch.setattr(shapes, "build", nothing)
    with pytest.raises(SystemExit) as error:
        cli.main(["profile", *(option.replace("TMP", str(tmp_path)) for option in options)])
    printed = capsys.readouterr().err or f"{error.value}\n"
    assert words.replace("TMP", str(tmp_path)) in printed
    assert printed.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_json_alone_on_standard_output(capsys):
    cli.main(["profile", "--model", "embedded", "--keep", "0.25", "--new-tokens", "2", "--rounds", "1", "--json"])
    written = json.loads(capsys.readouterr().out)
    assert [row["policy"] for row in written["rows"]] == ["full", "divprune"]


def _small(name):
    """The config of a published shape with its grids, and hardly any weights."""
    config = shapes.config_of(name, 1)
    config.vision_config.num_hidden_layers = 2
    for part in (config.vision_config, config.get_text_config()):
        for key in ("num_attention_heads", "num_heads", "num_key_value_heads"):
            if hasattr(part, key):
                setattr(part, key, 2)
        for key, size in (("hidden_size", 32), ("intermediate_size", 32), ("depth", 2)):
            if hasattr(part, key):
                setattr(part, key, size)
    text, vision = config.get_text_config(), config.vision_config
    text.head_dim = 16
    for key in ("rope_parameters", "rope_scaling"):  # transformers 5, 4
        rope = getattr(text, key, None) or {}
        if "mrope_section" in rope:
            rope["mrope_section"] = [4, 2, 2]
    if hasattr(vision, "out_hidden_size"):
        vision.out_hidden_size = 32
    for key in ("fullatt_block_indexes", "deepstack_visual_indexes"):
        if hasattr(vision, key):
            setattr(vision, key, [1])
    return config


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("llava-1.5-7b", shapes.Request(batch=2, images=2)),
        ("llava-next-7b", shapes.Request()),
        ("llava-next-7b", shapes.Request(images=2, side=500)),
        ("llava-onevision-7b", shapes.Request()),
        ("llava-onevision-7b", shapes.Request(side=2000)),
        ("llava-onevision-7b", shapes.Request(frames=3)),
        ("qwen2.5-vl-7b", shapes.Request(batch=2, side=224)),
        ("qwen2.5-vl-7b", shapes.Request(frames=5, side=112)),
        ("qwen3-vl-8b", shapes.Request(side=224, images=2)),
    ],
)
def test_prompts_have_as_many_placeholders_as_there_are_features(name, request_):
    """Lengths come from the grids. The model itself refuses a prompt whose placeholders do not fit its features."""
    config, cpu = _small(name), torch.device("cpu")
    model = shapes.build(config, torch.float32, cpu, None)
    batch = shapes.inputs(name, config, request_, cpu, torch.float32)
    with torch.inference_mode():
        assert torch.isfinite(model(**batch, logits_to_keep=1).logits).all()


def test_cheap_random_numbers_are_as_spread_as_others():
    filled = []
    with CheapRandom(filled.append):
        weight = torch.empty(600, 3584).normal_(mean=0.5, std=0.02)
        bias = torch.nn.init.uniform_(torch.empty(50_000), -1, 3)
        linear = torch.nn.Linear(500, 300)
    assert filled == [600 * 3584 * 4, 200_000, 600_000, 1200]
    assert linear.weight.abs().max().item() == pytest.approx(500**-0.5, rel=0.01)
    assert weight.mean().item() == pytest.approx(0.5, abs=1e-3) and weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert bias.min().item() == pytest.approx(-1, abs=0.01) and bias.max().item() == pytest.approx(3, abs=0.01)
    assert len(weight.unique(dim=0)) == 600 and weight.numel() > 2 * BLOCK
    assert torch.linalg.matrix_rank(weight[:64].float()) == 64


@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_fit_the_console(embedded, width):
    rows = profile(*embedded, [PruningSetting("divprune+fastv", 0.25)], new_tokens=2, rounds=1)
    console = Console(width=width, record=True, file=io.StringIO())
    for table in tables(rows, "a title", console):
        console.print(table)
    printed = console.export_text()
    text = " ".join(printed.split())
    assert max(len(line) for line in printed.splitlines()) <= width
    assert "…" not in text
    assert width < 80 or "divprune+fastv 0.25" in text
    for word in ("divprune", "ms/token", "peak MiB", "TFLOP", f"{rows[1]['kept']:g}", "medians of 1 rounds"):
        assert word in text
