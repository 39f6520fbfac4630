"""Models and tasks in lmms-eval: right answers, and its known traps."""

import sys

import pytest
import torch

import tokenprune
from tokenprune.eval import answers as embedded_answers
from tokenprune.eval import demo
from tokenprune.eval.lmms import builtin
from tokenprune.eval.lmms import model as model_module
from tokenprune.eval.lmms.manifests import BUILTINS
from tokenprune.eval.lmms.options import model_args, take_pruning
from tokenprune.eval.minivlm import load
from tokenprune.eval.setting import PruningSetting
from tokenprune.policies import DivPrune

from .support import answers

PLAIN = "pretrained=embedded,positions=original"


@pytest.mark.parametrize("name", ["tokenprune_hf", *BUILTINS])
def test_models_come_through_the_entry_point(name):
    from lmms_eval.models import get_model

    cls = get_model(name)
    assert not cls.is_simple
    assert cls.__module__.startswith("tokenprune.eval.lmms")


@pytest.mark.parametrize(
    ("policy", "keep"), [(None, 1.0), ("divprune", 0.1), ("todre", 0.25), ("random", 0.25), ("fastv@final", 0.25)]
)
def test_harness_and_demo_answer_alike(evaluate, policy, keep):
    samples = embedded_answers.held_out(600)
    setting = PruningSetting() if policy is None else PruningSetting(policy, keep)
    theirs = embedded_answers.answer(*load(), samples, setting)
    pruned = "policy=none,pretrained=embedded" if policy is None else f"{PLAIN},policy={policy},keep={keep}"
    results = evaluate(pruned)
    ours = {s["doc"]["index"]: s["filtered_resps"][0] for ss in results["samples"].values() for s in ss}
    assert sorted(ours) == list(range(600))
    assert [ours[i] for i in range(600)] == theirs.texts
    scores = demo.exact_match(samples, theirs)
    for task, metrics in results["results"].items():
        of_type = task.removeprefix("tokenprune_embedded").removeprefix("_") or "all"
        assert metrics["exact_match,none"] == pytest.approx(scores[of_type])
    kept = results["throughput"]
    assert kept["avg_samples"] == 600
    if policy is not None:
        assert kept["avg_visual_tokens"] == 144
        assert kept["avg_kept_tokens"] == pytest.approx(sum(theirs.kept) / len(samples))


def test_batch_sizes_agree(evaluate):
    one, many = (answers(evaluate(f"{PLAIN},policy=divprune,keep=0.25", limit=6, batch_size=size)) for size in (1, 16))
    assert one == many


class Broken(RuntimeError):
    pass


def _breaking(model, at):
    """Makes a decoder layer of the loaded model raise at its n-th call."""
    calls = iter(range(10**6))

    def hook(module, args):
        if next(calls) >= at:
            raise Broken("out of luck")

    return model.model.language_model.layers[1].register_forward_pre_hook(hook)


def test_a_crash_inside_generate_fails_the_run(evaluate, monkeypatch):
    loading = model_module._load

    def load_broken(*args):
        model, processor = loading.__wrapped__(*args)
        _breaking(model, 3)
        return model, processor

    monkeypatch.setattr(model_module, "_load", load_broken)
    with pytest.raises(Broken, match="out of luck"):
        evaluate(f"{PLAIN},policy=divprune,keep=0.25", limit=4)


def test_a_failed_run_leaves_nothing_to_the_next(evaluate, monkeypatch):
    """The model is kept for the next run of the process."""
    run = lambda args: evaluate(f"pretrained=embedded,{args}", tasks=["tokenprune_embedded_count"], limit=8)
    expected = answers(run("policy=none"))
    with monkeypatch.context() as patch:
        patch.setattr(DivPrune, "select_many", lambda *args: (_ for _ in ()).throw(Broken("out of luck")))
        with pytest.raises(Broken):
            run("policy=divprune,keep=0.05")
    results = run("policy=none")
    assert answers(results) == expected
    assert results["throughput"]["avg_kept_tokens"] == 0
    assert answers(run("policy=divprune,keep=0.05")) != expected


@pytest.mark.parametrize("name", ["llava_hf", "tokenprune_llava_hf"])
def test_a_crash_inside_the_builtin_loop_is_no_empty_answer(evaluate, monkeypatch, name):
    from lmms_eval.models.simple import llava_hf

    from tokenprune.eval.minivlm import WEIGHTS

    cls = llava_hf.model_map["llava"]

    class Breaking(cls):
        @classmethod
        def from_pretrained(cls, *args, **kwargs):
            model = super().from_pretrained(*args, **kwargs)
            _breaking(model, 0)
            return model

    monkeypatch.setitem(llava_hf.model_map, "llava", Breaking)
    run = lambda args: evaluate(args, model=name, tasks=["tokenprune_embedded_count"], limit=3, batch_size=1)
    if name == "llava_hf":  # what the trap is
        results = run(f"pretrained={WEIGHTS['llava']},device=cpu,device_map=cpu,dtype=float32")
        assert set(answers(results).values()) == {""}
    else:
        with pytest.raises(RuntimeError, match=r"generate\(\) failed: out of luck"):
            run(f"pretrained={WEIGHTS['llava']},policy=divprune,keep=0.25")


def test_builtin_llava_answers_as_ours(evaluate):
    from tokenprune.eval.minivlm import WEIGHTS

    pruned = "policy=divprune,keep=0.1,positions=original"
    builtin_run = evaluate(
        f"pretrained={WEIGHTS['llava']},{pruned}", model="tokenprune_llava_hf", limit=8, batch_size=1
    )
    assert answers(builtin_run) == answers(evaluate(f"pretrained=embedded,{pruned}", limit=8))
    assert builtin_run["throughput"]["avg_kept_tokens"] == 14
    assert builtin_run["throughput"]["avg_samples"] == 48
    full = evaluate(f"pretrained={WEIGHTS['llava']},policy=none", model="tokenprune_llava_hf", limit=8, batch_size=1)
    assert answers(full) == answers(evaluate("pretrained=embedded,policy=none", limit=8))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_builtin_qwen_wrappers_run_pruned(evaluate, qwen, family):
    args = f"pretrained={qwen[family]},max_pixels=1024,min_pixels=64"
    run = lambda more: evaluate(
        f"{args},{more}", model=f"tokenprune_{family}", tasks=["tokenprune_embedded_shape"], limit=4, batch_size=2
    )
    pruned, full = run("policy=divprune,keep=0.25"), run("policy=none")
    assert pruned["throughput"]["avg_visual_tokens"] in (16, 144)  # 32 or 96 pixels, patches of 4, merged by 2 x 2
    assert pruned["throughput"]["avg_kept_tokens"] == pruned["throughput"]["avg_visual_tokens"] / 4
    assert "avg_visual_tokens" in full["throughput"]
    assert full["throughput"]["avg_kept_tokens"] == 0
    assert answers(pruned) != answers(full)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_any_checkpoint_through_its_chat_template(evaluate, qwen, family):
    run = lambda keep, size: evaluate(
        f"pretrained={qwen[family]},policy=divprune,keep={keep}", limit=3, batch_size=size
    )
    half = run(0.5, 1)
    assert half["throughput"]["avg_kept_tokens"] == half["throughput"]["avg_visual_tokens"] / 2
    assert answers(half) == answers(run(0.5, 4))
    assert answers(run(1.0, 1)) == answers(evaluate(f"pretrained={qwen[family]},policy=none", limit=3, batch_size=1))


def test_pixels_are_limited(evaluate, qwen):
    place = f"pretrained={qwen['qwen2_5_vl']},policy=divprune,keep=0.5"
    run = lambda more: evaluate(place + more, tasks=["tokenprune_embedded_shape"], limit=2)["throughput"]
    assert run(",max_pixels=256")["avg_visual_tokens"] < run("")["avg_visual_tokens"]


def _messages(*parts):
    return lambda doc: [{"role": "user", "content": list(parts)}]


def _ask(model, *requests):
    from lmms_eval.api.instance import Instance

    model.task_dict["own"] = {"test": [None] * len(requests)}
    meta = {"task": "own", "doc_id": 0, "repeats": 1}
    asked = [
        Instance("generate_until", ("", messages, generation, i, "own", "test"), 0, metadata=meta)
        for i, (messages, generation) in enumerate(requests)
    ]
    return model.generate_until(asked)


def test_several_images_text_alone_and_generation_arguments(qwen):
    samples = embedded_answers.held_out(12)
    pictures = [{"type": "image", "url": _image(s)} for s in (samples[0], samples[6])]
    words = {"type": "text", "text": "What colour is the ?"}
    model = model_module.PrunedModel(str(qwen["qwen2_5_vl"]), policy="divprune", keep=0.5, batch_size=4)
    short, long = {"max_new_tokens": 3}, {"max_new_tokens": 6, "temperature": 0}
    requests = [
        (_messages(*pictures, words), short),
        (_messages(pictures[0], words), long),
        (_messages(words), short),
        (_messages(pictures[1], words), short),
    ]
    batch = _ask(model, *requests)
    alone = [_ask(model, request)[0] for request in requests]
    assert [a.text for a in batch] == [a.text for a in alone]
    assert [a.token_counts.output_tokens for a in batch] == [3, 6, 3, 3]
    # the first row has both pictures' tokens, halved
    assert batch[0].token_counts.input_tokens - batch[3].token_counts.input_tokens == 8 + 2
    until = _ask(model, (_messages(words), {"max_new_tokens": 3, "until": [batch[2].text.split()[-1]]}))
    assert until[0].text == batch[2].text.rpartition(batch[2].text.split()[-1])[0]
    sampled = {"max_new_tokens": 6, "temperature": 2.0, "do_sample": True}
    torch.manual_seed(0)
    drawn = [_ask(model, (_messages(words), sampled))[0].text for _ in range(2)]
    assert drawn[0] != drawn[1]
    model.clean()


def _image(sample):
    from PIL import Image

    return Image.fromarray(sample.scene.image)


def test_video(qwen, tmp_path):
    import av
    import numpy as np

    clip = tmp_path / "clip.mp4"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 64
        for i in range(16):
            picture = np.full((64, 64, 3), 10 * i, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    message = _messages({"type": "video", "url": str(clip)}, {"type": "text", "text": "What is there ?"})
    counts = {}
    for frames in (4, 8):
        model = model_module.PrunedModel(
            str(qwen["qwen2_5_vl"]), policy="divprune", keep=0.5, max_frames=frames, batch_size=1
        )
        counts[frames] = _ask(model, (message, {"max_new_tokens": 2}))[0].token_counts.input_tokens
        model.clean()
    assert counts[8] > counts[4]


def test_sound_is_refused(qwen):
    model = model_module.PrunedModel(str(qwen["qwen2_5_vl"]))
    message = _messages({"type": "audio", "url": "x.wav"}, {"type": "text", "text": "What ?"})
    with pytest.raises(ValueError, match="asks about sound"):
        _ask(model, (message, {}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("policy=divprun", "Did you mean 'divprune'"),
        ("policy=divprune,keep=1.5", r"accepted: a float in \(0, 1\]"),
        ("policy=none,keep=0.5", "policy=none is the full model and takes no keep"),
        ("policy=divprune,positions=nowhere", "positions='nowhere' is none of original, compact"),
        ("policy=random,policy_sede=1", "'sede' for policy 'random'"),
        ("policy=divprune+fastv,policy_seed=1", "options go with a single policy"),
        ("policy=divprune,kep=0.5", "unknown model argument 'kep'; accepted: pretrained, batch_size"),
        ("policy=divprune,tokenprune_version=0.0.0", f"0.0.0 is asked for, {tokenprune.__version__} is installed"),
        ("policy=divprune,dtype=float8", "dtype='float8' is none of auto"),
        ("pretrained=/nowhere/at/all", "there is no such folder"),
    ],
)
def test_bad_arguments_fail_before_the_model_loads(evaluate, monkeypatch, arguments, message):
    monkeypatch.setattr(model_module, "_load", lambda *a: pytest.fail("the model was loaded"))
    with pytest.raises((ValueError, OSError), match=message):
        evaluate(arguments if "pretrained" in arguments else f"pretrained=embedded,{arguments}", limit=1)


def test_a_family_that_is_not_supported_fails_before_the_model_loads(evaluate, monkeypatch, tmp_path):
    from transformers import BertConfig

    BertConfig().save_pretrained(tmp_path)
    monkeypatch.setattr(model_module, "_load", lambda *a: pytest.fail("the model was loaded"))
    with pytest.raises(ValueError, match=r"model type 'bert'; supported: .*llava"):
        evaluate(f"pretrained={tmp_path}", limit=1)


def test_all_that_answers_depend_on_is_in_the_arguments():
    options = PruningSetting("random", 0.25, "compact", {"seed": 3})
    text = model_args(options)
    assert text == (
        f"policy=random,keep=0.25,positions=compact,policy_seed=3,tokenprune_version={tokenprune.__version__}"
    )
    given = dict(part.split("=") for part in text.split(","))
    taken = take_pruning(given | {"keep": 0.25, "policy_seed": 3})
    assert taken == options
    assert model_args(PruningSetting()) == f"policy=none,tokenprune_version={tokenprune.__version__}"


def test_the_response_cache_asks_for_our_version(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lmms_eval", "--use_cache", "folder"])
    with pytest.raises(ValueError, match=f"add tokenprune_version={tokenprune.__version__}"):
        take_pruning({"policy": "divprune"})
    take_pruning({"policy": "divprune", "tokenprune_version": tokenprune.__version__})


@pytest.mark.parametrize("name", ["tokenprune_hf", "tokenprune_llava_hf"])
def test_the_response_cache_knows_budgets_apart(evaluate, monkeypatch, tmp_path, name):
    from tokenprune.eval.minivlm import WEIGHTS

    asked = []
    cls = model_module.PrunedModel if name == "tokenprune_hf" else builtin.Pruned
    original = cls.generate_until
    monkeypatch.setattr(cls, "generate_until", lambda self, reqs: asked.append(len(reqs)) or original(self, reqs))

    def run(keep):
        asked.clear()
        options = PruningSetting("divprune", keep, "original")
        results = evaluate(
            f"pretrained={WEIGHTS['llava']},{model_args(options)}",
            model=name,
            tasks=["tokenprune_embedded_where"],
            limit=5,
            batch_size=1,
            use_cache=str(tmp_path / "cache"),
        )
        return sum(asked), answers(results)

    first, few = run(0.03)
    assert first == 5
    again, same = run(0.03)
    assert again == 0  # all five were there: the built-in loop alone files them where nobody looks
    assert same == few
    other, _ = run(0.5)
    assert other == 5


def test_unsupported_kinds_of_requests_say_so():
    model = model_module.PrunedModel("embedded")
    for method in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="not supported"):
            method([])
