"""Answers, counts and caches of the offline engine."""

import math
import os
import subprocess
import sys

import pytest

from tokenprune.budget import Budget
from tokenprune.eval.answers import held_out

from .support import BLOCK, HERE, answers, pairs, requests, tokens

VISUAL = 144  # of a picture on either embedded model


@pytest.mark.parametrize(
    ("name", "policy", "keep"),
    [
        ("llava", "divprune", 0.25),
        ("llava", "auto", 0.1),
        ("llava", "visionzip", 16),  # CLS attention, keys, merging
        ("llava", "mmtok", 0.1),  # text, and features before the projector
        ("qwen", "divprune", 0.25),
        ("qwen", "cdpruner", 0.1),
        ("qwen", "mmtok", 0.1),  # patches before the merger, window by window
    ],
)
def test_answers_are_those_of_the_hugging_face_path(engine, name, policy, keep):
    samples = held_out(20) + pairs(4)
    started = engine(name, policy, keep)
    outputs = started.ask(requests(name, samples))
    assert tokens(outputs) == answers(name, samples, policy, keep)
    assert tokens(started.ask(requests(name, samples))) == tokens(outputs)  # out of the caches this time
    for sample, out in zip(samples, outputs, strict=True):
        visual = sum(token in started.visual for token in out.prompt_token_ids)
        assert visual == len(sample.scenes) * Budget(keep).count(VISUAL)
    started.llm.reset_prefix_cache()
    assert started.blocks_of(requests(name, samples[-1:])[0]) == math.ceil(
        (len(outputs[-1].prompt_token_ids) + 1) / BLOCK
    )


@pytest.mark.parametrize("name", ["llava", "qwen"])
@pytest.mark.parametrize("caching", [True, False])
def test_budgets_of_requests_share_nothing(engine, name, caching):
    samples = held_out(6)
    started = engine(name, "divprune", 0.25, enable_prefix_caching=caching)
    for keep in (0.25, 0.1, 1.0, 9, 0.25):  # 1.0: more than the engine's own
        outputs = started.ask(requests(name, samples, keep=keep))
        expected = answers(name, samples, "divprune", keep)
        assert tokens(outputs) == expected, keep
        for out in outputs:
            assert sum(token in started.visual for token in out.prompt_token_ids) == Budget(keep).count(VISUAL)
    mixed = [requests(name, [s], keep=k)[0] for s in samples for k in (0.1, 0.25, 1.0)]
    expected = [answers(name, [s], "divprune", k)[0] for s in samples for k in (0.1, 0.25, 1.0)]
    assert tokens(started.ask(mixed)) == expected


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_chunked_prefill_and_small_steps(engine, name):
    """Prompts in pieces that end inside a picture."""
    samples = pairs(6)
    started = engine(name, "divprune", 0.25, max_num_batched_tokens=160, long_prefill_token_threshold=20)
    assert tokens(started.ask(requests(name, samples))) == answers(name, samples, "divprune", 0.25)


def test_text_guided_picks_follow_the_question(engine):
    """One picture, many questions: no entry of a cache is shared between them."""
    drawn = held_out(30)
    samples = [s for s in drawn if s.scene is drawn[0].scene] + [s for s in drawn if s.scene is drawn[-7].scene]
    assert len(samples) > 6
    started = engine("llava", "cdpruner", 6)
    assert tokens(started.ask(requests("llava", samples))) == answers("llava", samples, "cdpruner", 6)


def test_installed_and_not_asked_for_it_changes_nothing():
    code = (
        "from vllm.plugins import load_general_plugins; load_general_plugins()\n"
        "from vllm import ModelRegistry\n"
        "from tokenprune.serve import ARCHITECTURES\n"
        "for name in ARCHITECTURES:\n"
        "    assert ModelRegistry.models[name].module_name.startswith('vllm.'), name\n"
        "    assert ModelRegistry.models['Tokenprune' + name].module_name.startswith('tokenprune.'), name\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in HERE}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_settings_by_hf_overrides_and_mm_processor_kwargs(engine):
    samples = held_out(4)
    overrides = {
        "architectures": ["TokenpruneLlavaForConditionalGeneration"],
        "tokenprune": {"policy": "divprune", "keep": 0.5},
    }
    started = engine("llava", hf_overrides=overrides, mm_processor_kwargs={"keep": 0.1})
    assert tokens(started.ask(requests("llava", samples))) == answers("llava", samples, "divprune", 0.1)
    outputs = started.ask(requests("llava", samples, keep=0.25))
    assert tokens(outputs) == answers("llava", samples, "divprune", 0.25)


@pytest.mark.parametrize(
    ("name", "policy", "settings", "message"),
    [
        ("llava", "fastv", {}, "inside the decoder"),
        ("llava", "tokenflex", {}, "only after it has chosen"),
        ("llava", "todre", {}, "removal=False"),
        ("llava", "prumerge", {}, "last layer"),
        ("qwen", "visionzip", {}, "not heard"),
        ("llava", "nosuch", {}, "unknown policy"),
        ("qwen", "divprune", {"video_pruning_rate": 0.5, "videos": 1}, "--video-pruning-rate"),
    ],
)
def test_refused_at_start_up(engine, name, policy, settings, message):
    with pytest.raises(Exception, match=message):
        engine(name, policy, 0.25, **settings)


def test_a_failing_policy_keeps_tokens_evenly_and_the_engine_goes_on(engine, caplog):
    samples = held_out(4)
    started = engine("qwen", "divprune", 0.25)
    policy = started.model.settings.policy

    def fail(tokens, n_keep):
        raise ArithmeticError("no picks today")

    policy.select_many = fail
    failed = started.ask(requests("qwen", samples))
    assert "no picks today" in caplog.text
    for out in failed:
        assert sum(token in started.visual for token in out.prompt_token_ids) == Budget(0.25).count(VISUAL)
        assert out.outputs[0].token_ids
    del policy.select_many
    # Of the same pictures and questions: no cache has kept what was answered meanwhile.
    expected = answers("qwen", samples, "divprune", 0.25)
    assert expected != tokens(failed)
    assert tokens(started.ask(requests("qwen", samples))) == expected


def test_a_bad_budget_among_the_engines_arguments(engine):
    with pytest.raises(ValueError, match="accepted"):
        engine("llava", "divprune", 0.25, mm_processor_kwargs={"keep": 2.0})
