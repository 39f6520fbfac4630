"""Tuning the embedded LLaVA from prompts to a recipe."""

import dataclasses

import numpy as np
import pytest
import torch

from tokenprune import Recipe, apply_pruning, remove_pruning, tune
from tokenprune.eval import minivlm
from tokenprune.eval.conversations import encode_conversations
from tokenprune.eval.errors import CommandError
from tokenprune.eval.setting import PruningSetting
from tokenprune.eval.tune.source import deal

N = 48
OPTIONS = {
    "tolerance": 0.15,
    "policies": ("divprune", "random"),
    "keeps": (0.9, 0.5, 0.02),
    "cost": "flops",
    "batch": 8,
    "new_tokens": 5,
}


class Steps:
    """Notes what tuning says, and interrupts it after so many prompts."""

    def __init__(self, last=None):
        self.steps, self.asked, self.last = [], 0, last

    def begin(self, step, total):
        self.steps.append(step)

    def advance(self, count):
        self.asked += count
        if self.last is not None and self.asked >= self.last:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def loaded():
    return minivlm.load()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder of answers that the tests of this file share."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def tuned(loaded, prompts, work):
    return tune(*loaded, prompts(N), work=work, **OPTIONS)


def without_time(recipe):
    return dataclasses.replace(recipe, measured={k: v for k, v in recipe.measured.items() if k != "made"})


def texts(model, processor, batch):
    inputs = encode_conversations(processor, [prompt.conversation() for prompt in batch])
    new = model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(new, skip_special_tokens=True)


def test_the_recipe_is_that_of_the_cheapest_certified_setting(tuned):
    certified = [row for row in tuned.rows if row.certified]
    assert tuned.chosen == min(certified, key=lambda row: row.cost)
    assert tuned.recipe.policies == PruningSetting("divprune").policies
    assert tuned.chosen.setting == f"divprune {tuned.recipe.keep:g}"
    assert tuned.recipe.keep < 0.9
    costs = [row.cost for row in tuned.rows if row.chain == "divprune"]
    assert costs == sorted(costs, reverse=True)
    assert all(row.low <= row.risk <= row.high for row in tuned.rows)


def test_what_is_reported_is_what_the_recipe_does(tuned, loaded, prompts, tmp_path):
    """The applied recipe generates; the share of answers that change on the test prompts is the risk that is told."""
    model, processor = loaded
    tuned.recipe.write(tmp_path / "recipe.json")
    batches, halves = deal(prompts(N), OPTIONS["batch"], 0)
    changed, right, full_right = [], [], []
    for i in (i for group in halves.testing for i in group):
        full = texts(model, processor, batches[i])
        apply_pruning(model, tmp_path / "recipe.json")
        pruned = texts(model, processor, batches[i])
        remove_pruning(model)
        changed += [a != b for a, b in zip(full, pruned, strict=True)]
        right += [text.strip() in prompt.answers for text, prompt in zip(pruned, batches[i], strict=True)]
        full_right += [text.strip() in prompt.answers for text, prompt in zip(full, batches[i], strict=True)]
    told = tuned.recipe.measured
    assert told["certificate"]["risk"] == pytest.approx(np.mean(changed))
    assert told["certificate"]["tested"] == len(changed) == N // 2
    assert told["accuracy"] == {
        "full": pytest.approx(np.mean(full_right)),
        "pruned": pytest.approx(np.mean(right)),
        "labelled_prompts": N // 2,
    }
    cost = told["cost"]
    assert cost["share"] == pytest.approx(cost["pruned"]["prefill_flops"] / cost["full"]["prefill_flops"])
    assert cost["full"]["visual_tokens"] == 144
    assert cost["pruned"]["visual_tokens"] == round(144 * tuned.recipe.keep)
    assert Recipe.read(tmp_path / "recipe.json").measured == told


def test_a_run_that_was_interrupted_goes_on_and_finds_the_same(tuned, loaded, prompts, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tune(*loaded, prompts(N), work=tmp_path, progress=Steps(last=100), **OPTIONS)
    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert len(done) > N / 8
    steps = Steps()
    again = tune(*loaded, prompts(N), work=tmp_path, progress=steps, **OPTIONS)
    assert steps.steps == ["answering with all tokens", "ranking policies", "testing the best"]
    assert without_time(again.recipe) == without_time(tuned.recipe)
    assert again.rows == tuned.rows
    full = {path: time for path, time in done.items() if path.parent.name == "full"}
    assert len(full) == N / OPTIONS["batch"]
    assert all(path.stat().st_mtime_ns == time for path, time in full.items())


def test_where_nothing_can_be_certified_it_says_how_many_prompts_would_do(loaded, prompts, work):
    tuned = tune(*loaded, prompts(N), work=work, **{**OPTIONS, "tolerance": 0.01, "keeps": (0.9,)})
    assert tuned.recipe is None and tuned.chosen is None
    assert tuned.prompts_needed == 2 * 299  # 0.99 ** 299 is below 0.05
    lossy = tune(*loaded, prompts(N), work=work, **{**OPTIONS, "policies": ("random",), "keeps": (0.02,)})
    assert lossy.recipe is None
    assert lossy.prompts_needed is None


@pytest.mark.parametrize("metric", ["tokens", "kl", "accuracy"])
def test_other_metrics_are_certified_too(loaded, prompts, work, metric):
    tuned = tune(*loaded, prompts(N), work=work, **{**OPTIONS, "metric": metric, "policies": ("divprune",)})
    assert tuned.recipe.measured["certificate"]["metric"] == metric
    assert tuned.chosen.risk <= 0.15


def test_settings_with_options_of_their_own_are_a_chain(loaded, prompts, work):
    """An adaptive policy has no keep ratio: its options say how much stays."""
    chain = [PruningSetting("vtw:depth=0.75"), PruningSetting("vtw:depth=0.5")]
    tuned = tune(*loaded, prompts(N), work=work, **{**OPTIONS, "policies": [chain], "tolerance": 0.5})
    assert tuned.rows[0].chain == f"{chain[0].name} to {chain[1].name}"
    assert tuned.recipe.keep is None
    assert tuned.recipe.policies[0].name == "vtw"


def test_a_model_with_a_layer_on_the_disk_is_tuned_alike(tuned, loaded, prompts, tmp_path):
    """As `device_map` spreads one that does not fit."""
    parts = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", "lm_head": "cpu"}
    parts |= {f"model.language_model.{name}": "cpu" for name in ("embed_tokens", "norm", "rotary_emb")}
    parts |= {f"model.language_model.layers.{i}": "disk" if i == 3 else "cpu" for i in range(4)}
    spread = type(loaded[0]).from_pretrained(
        minivlm.WEIGHTS["llava"], dtype=torch.float32, device_map=parts, offload_folder=tmp_path / "disk"
    )
    assert {parameter.device.type for parameter in spread.parameters()} == {"cpu", "meta"}
    few = {**OPTIONS, "tolerance": 0.4, "policies": ("fastv",), "keeps": (0.9, 0.6)}
    found = [tune(model, loaded[1], prompts(16), **few) for model in (loaded[0], spread)]
    assert found[0].rows == found[1].rows
    assert found[0].recipe.differences(spread) == []
    assert found[1].recipe.differences(loaded[0]) == []


def test_without_time_nothing_is_claimed(loaded, prompts, work):
    tuned = tune(*loaded, prompts(N), work=work, **OPTIONS, minutes=1e-9)
    assert (tuned.recipe, tuned.rows, tuned.complete) == (None, [], False)


def test_times_are_measured(loaded, prompts, work):
    tuned = tune(
        *loaded, prompts(N), work=work, **{**OPTIONS, "cost": "time", "policies": ("divprune",), "keeps": (0.5,)}
    )
    cost = tuned.recipe.measured["cost"]
    assert cost["pruned"]["first_token_ms"] == pytest.approx(cost["share"] * cost["full"]["first_token_ms"])


def test_pictures_that_occur_twice_are_told(loaded, prompts, work):
    twice = [
        *prompts(N),
        *(dataclasses.replace(prompt, question="How many shapes are there?") for prompt in prompts(4)),
    ]
    tuned = tune(*loaded, twice, work=work, **{**OPTIONS, "policies": ("divprune",), "keeps": (0.9,)})
    assert "4 of 52 prompts have a picture that another one has" in " ".join(tuned.notes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"metric": "bleu"}, "metric='bleu' is unknown; accepted: 'answer', 'tokens', 'kl', 'accuracy'"),
        ({"cost": "money"}, "cost='money' is unknown"),
        ({"score": len}, "score goes with metric='accuracy', not 'answer'"),
        ({"minutes": 0}, "minutes=0 must be a number > 0"),
        ({"batch": 0}, "batch=0 must be >= 1"),
        ({"tolerance": 0}, r"tolerance=0 must be a number in \(0, 1\)"),
    ],
)
def test_options_out_of_range_are_refused(loaded, prompts, changes, told):
    with pytest.raises(ValueError, match=told):
        tune(*loaded, prompts(N), **{**OPTIONS, **changes})


def test_prompts_that_cannot_be_used_are_refused(loaded, prompts):
    unlabelled = [dataclasses.replace(prompt, answers=()) for prompt in prompts(N)]
    for given, changes, told in (
        (prompts(3), {}, "3 prompts are too few"),
        (unlabelled, {"metric": "accuracy"}, "48 of 48 prompts have no right answer"),
        (prompts(N), {"keeps": (0.5, 3)}, "mixes ratios and numbers of tokens"),
        (prompts(N), {"policies": ("fastv",), "keeps": (0.1,)}, "no policy can act on this model: .*holds 0.5"),
    ):
        with pytest.raises(CommandError, match=told):
            tune(*loaded, given, **{**OPTIONS, **changes})
