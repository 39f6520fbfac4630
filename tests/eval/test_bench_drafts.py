"""The benchmark of drafts: what it counts, on an embedded model and on steps of a small text model."""

import json

import pytest
import torch

from tokenprune.eval import bench_drafts, draft_steps

from ..families import ENCODES_FIRST, get_model, text_of

no_features = pytest.mark.skipif(not ENCODES_FIRST, reason="this transformers hands no features to an assistant")


def test_what_counts_as_accepted():
    """By hand: a call adds a token of its own behind the proposals that it agrees with."""
    text = [1, 2, 3, 4, 5, 6]
    assert bench_drafts.accepted(text, [[], [], []]) == 0
    assert bench_drafts.accepted(text, [[1, 2, 9], [4, 5]]) == 4  # 3 and 6 are the model's own
    assert bench_drafts.accepted(text, [[9, 2], [2, 3, 4, 5, 6]]) == 5  # the text ends before a token of its own
    assert bench_drafts.accepted(text, [[1, 2, 3], [5, 6, 7]]) == 5


@no_features
def test_drafts_on_an_embedded_model(tmp_path, capsys):
    out = tmp_path / "drafts.json"
    options = [
        "--tasks",
        "word,counting",
        "--samples",
        "2",
        "--policy",
        "grid",
        "--keep",
        "0.05,1.0",
        "--json",
        str(out),
    ]
    bench_drafts.main([*options, "--proposals", "3", "--max-new-tokens", "8", "--min-new-tokens", "8"])
    alone, little, all_tokens = json.loads(out.read_text())["rows"]
    assert (alone["calls_per_token"], alone["ratio"], alone["tokens_per_text"]) == (1, 1, 8)
    assert little["equal"] == all_tokens["equal"] == 1
    # With all tokens seen: three are accepted, and one is the model's own, twice.
    assert (all_tokens["calls_per_token"], all_tokens["proposed_per_call"], all_tokens["accepted"]) == (0.25, 3, 1)
    assert little["accepted"] < 1 and little["calls_per_token"] > 0.25
    assert "grid 0.05" in capsys.readouterr().out


@no_features
def test_drafts_that_encode_the_pictures_themselves():
    model, prompts = bench_drafts.prompts_of("llava", ["word"], 1)
    writing = bench_drafts.Writing(max_new_tokens=6, min_new_tokens=6, own_pixels=True)
    _, drafted = bench_drafts.measure(model, prompts, [("visionzip", 0.25)], writing)
    assert drafted["equal"] == 1
    with pytest.raises(ValueError, match="reads the vision encoder"):
        bench_drafts.measure(model, prompts, [("visionzip", 0.25)], bench_drafts.Writing())


@pytest.mark.parametrize(
    "options",
    [["--keep", "a"], ["--keep", "2"], ["--tasks", "chess"], ["--config", "llava-next-7b", "--visual-tokens", "a"]],
)
def test_options_that_fit_nothing(options, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench_drafts.main(options)
    assert options[-1] in capsys.readouterr().err.splitlines()[-1]


def test_bytes_that_a_step_reads():
    """By hand, of the published Qwen2-7B: 28 layers, 4 heads of keys and values of width 128, a head of its own."""
    reads = draft_steps.Reads.of("llava-onevision-7b", torch.bfloat16)
    assert reads.kv_per_token == 28 * 2 * 4 * 128 * 2
    attention = 3584 * (3584 + 2 * 512) + 3584 + 2 * 512 + 3584 * 3584
    layer = attention + 3 * 3584 * 18944 + 2 * 3584
    assert reads.weights == 2 * (28 * layer + 152000 * 3584)


def test_steps_on_a_filled_cache():
    text = text_of(get_model("llava"))
    cache = draft_steps.filled_cache(text, 20)
    assert cache.get_seq_length() == 20
    rows = draft_steps.measure(text, draft_steps.Reads(1000, 10), [200], [0.1, 1.0], proposals=4, rounds=1)
    little, everything = rows
    assert (little["kv_bytes"], little["bytes"], little["full_kv_bytes"], little["full_bytes"]) == (
        200,
        1200,
        2000,
        3000,
    )
    # A round reads four steps of the draft and one of the model: it has to be worth as many steps of the model.
    assert (little["breaks_even_by_bytes"], everything["breaks_even_by_bytes"]) == (1.6, 4)
    assert draft_steps.table_of(rows).row_count == 2
