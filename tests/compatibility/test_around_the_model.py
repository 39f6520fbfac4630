"""What wraps, moves, saves, compiles or interrupts a model."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from torch._dynamo.testing import CompileCounter

from tokenprune import apply_pruning, pruning, pruning_report, remove_pruning

from ..builders import spread_weights
from ..families import FAMILIES, get_model, one_row, ragged_batch, text_of
from ..oracles import assert_same, generate, keep_mask, masked
from ..patches import test_attachment, test_copies
from .cells import area

AREA = "Around the model"
cell = area(AREA)
ROOT = Path(__file__).parents[2]


@cell("bfloat16, float16", "runs; keeping all is the stock model to the bit")
def test_half_precision(family):
    for dtype in (torch.bfloat16, torch.float16):
        model, batch = copy.deepcopy(get_model(family)).to(dtype), ragged_batch(family)
        inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.inputs.items()}
        before = generate(model, inputs)
        with pruning(model, "divprune", 1.0):
            assert torch.equal(generate(model, inputs).logits, before.logits)
        with pruning(model, "divprune", 0.3):
            assert generate(model, inputs).logits.isfinite().all()


@cell("`model.to()` while pruned", "keeps pruning")
def test_moved(family):
    model, batch = copy.deepcopy(get_model(family)), ragged_batch(family)
    with pruning(model, "divprune", 0.3):
        expected = generate(model, batch.inputs)
        model.float().double()
        assert all(r.n_after < r.n_before for r in pruning_report(model))
        assert torch.equal(generate(model, batch.inputs).tokens, expected.tokens)


@cell("peft LoRA, before and after", "wraps a pruned model, and is pruned itself")
def test_lora(family):
    peft = pytest.importorskip("peft")
    batch = ragged_batch(family)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(copy.deepcopy(get_model(family)), config).double().eval()
    apply_pruning(wrapped, "divprune", 0.3, positions="original")
    run = generate(wrapped, batch.inputs)
    kept = keep_mask(batch, pruning_report(wrapped))
    remove_pruning(wrapped)
    assert_same(run, masked(wrapped.get_base_model(), batch, kept))
    assert not torch.equal(run.logits, generate(get_model(family), batch.inputs).logits)
    inner = copy.deepcopy(get_model(family))
    apply_pruning(inner, "divprune", 0.3, positions="original")
    torch.manual_seed(0)
    outer = peft.get_peft_model(inner, config).double().eval()
    assert_same(generate(outer, batch.inputs), run)


@cell("8-bit and 4-bit weights (quanto)", "as its own masked original")
def test_quantised(family):
    quanto = pytest.importorskip("optimum.quanto")
    for weights in (quanto.qint8, quanto.qint4):
        model, batch = copy.deepcopy(get_model(family)).float(), ragged_batch(family)
        quanto.quantize(text_of(model), weights=weights)
        quanto.freeze(text_of(model))
        assert any(type(m).__name__ == "QLinear" for m in text_of(model).modules())
        inputs = {k: v.float() if v.is_floating_point() else v for k, v in batch.inputs.items()}
        batch = type(batch)(inputs, batch.visuals)
        with pruning(model, "divprune", 0.3, positions="original"):
            run = generate(model, inputs)
            kept = keep_mask(batch, pruning_report(model))
        assert_same(run, masked(model, batch, kept), atol=1e-3)


@cell("accelerate: weights offloaded to CPU or disk, before and after", "as without")
def test_offloaded(family):
    accelerate = pytest.importorskip("accelerate")
    batch, here = ragged_batch(family), torch.device("cpu")
    with pruning(get_model(family), "divprune", 0.3):
        expected = generate(get_model(family), batch.inputs)
    with tempfile.TemporaryDirectory() as folder:
        for pruned_first, disk in itertools.product((True, False), (True, False)):
            model = copy.deepcopy(get_model(family))
            if pruned_first:
                apply_pruning(model, "divprune", 0.3)
            if disk:
                accelerate.disk_offload(model, f"{folder}/{pruned_first}", execution_device=here)
                assert all(p.is_meta for p in model.parameters())
            else:
                accelerate.cpu_offload(model, execution_device=here)
            if not pruned_first:
                apply_pruning(model, "divprune", 0.3)
            assert_same(generate(model, batch.inputs), expected)
            remove_pruning(model)


@cell("accelerate: over two devices (`device_map`), emulated", "as on one")
def test_two_devices(family):
    test = f"tests/emulated_device/test_device.py::test_over_two_devices[{family}-"  # in a process of its own
    halves = [f"{test}tower-visionzip]", f"{test}upper layers-auto]"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *halves]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


@cell("`save_pretrained`, `copy.deepcopy`", "saves the stock model; a copy prunes for itself")
def test_saved(family):
    model, batch = copy.deepcopy(get_model(family)), ragged_batch(family)
    before = generate(model, batch.inputs)
    apply_pruning(model, "divprune", 0.3)
    pruned = generate(model, batch.inputs)
    twin = copy.deepcopy(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        loaded = type(model).from_pretrained(folder, dtype=torch.float64).eval()
    loaded.generation_config.eos_token_id = None
    assert_same(generate(loaded, batch.inputs), before)  # rotary frequencies are computed anew
    remove_pruning(model)
    assert torch.equal(generate(model, batch.inputs).logits, before.logits)
    assert torch.equal(generate(twin, batch.inputs).logits, pruned.logits)


@cell("`torch.export`", "an error that says: remove pruning first", families=("llava",))
def test_exported(family):
    model, batch = copy.deepcopy(get_model(family)), ragged_batch(family)
    for part in (model, model.model):
        with pruning(model, "divprune", 0.3), pytest.raises(Exception, match="call remove_pruning\\(model\\) first"):
            torch.export.export(part, (), {**batch.inputs, "use_cache": False}, strict=False)


@cell("`torch.compile(model)`, run before it is pruned", "pruned from then on", families=("llava",))
def test_compiled_before(family):
    model, batch = copy.deepcopy(get_model(family)), one_row(family)
    with torch.no_grad():
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="eager")
        stock = compiled(**batch.inputs, use_cache=False).logits
        apply_pruning(compiled, "divprune", 0.3)
        pruned = compiled(**batch.inputs, use_cache=False).logits
        assert pruned.shape[1] < stock.shape[1]
        assert torch.equal(pruned, model(**batch.inputs, use_cache=False).logits)
        remove_pruning(compiled)
        assert torch.equal(compiled(**batch.inputs, use_cache=False).logits, stock)
    torch._dynamo.reset()


@cell("pickle, `torch.save`, spawn, Ray", "an error that says: remove pruning first", families=("llava",))
def test_pickled(family):
    test_copies.test_what_is_pruned_cannot_be_pickled_and_says_so()


@cell("`nn.DataParallel`", "an error that names what to use instead", families=("llava",))
def test_replicas(family):
    test_copies.test_replicas_are_refused()


@cell(
    "pruning changed while the model runs, `pruning()` blocks that do not nest",
    "an error; between two steps of `generate` it may change",
    ("llava",),
)
def test_changed_meanwhile(family):
    for where in ("same thread", "another thread"):
        test_attachment.test_pruning_cannot_change_while_the_model_runs(where)
    test_attachment.test_policies_may_change_between_the_steps_of_a_generation()
    test_attachment.test_blocks_that_do_not_nest_raise()


@cell('`pipeline("image-text-to-text")`', "prunes", families=("embedded",))
def test_pipeline(family):
    from tokenprune.eval.answers import held_out
    from tokenprune.eval.minivlm import load

    model, processor = load()
    samples = [held_out(12)[i] for i in (0, 7)]
    ask = transformers.pipeline("image-text-to-text", model=model, processor=processor)
    picture = lambda s: {"type": "image", "image": Image.fromarray(s.scene.image)}
    words = lambda s: {"type": "text", "text": s.question.text}
    chats = [[{"role": "user", "content": [picture(s), words(s)]}] for s in samples]
    apply_pruning(model, "divprune", 0.5, positions="original")
    answers = ask(text=chats, max_new_tokens=4, return_full_text=False, batch_size=1)
    assert [a[0]["generated_text"].strip() for a in answers] == [s.question.answer for s in samples]
    assert pruning_report(model)[0].n_after == 72


@cell("`torch.compile` of the decoder layers", "one graph, no break, same logits")
def test_compiled(family):
    # A new one: transformers leaves hooks of its own on a model that was asked for attentions.
    model, batch = spread_weights(FAMILIES[family].build()), one_row(family)
    with torch.no_grad(), pruning(model, "divprune", 0.3):
        expected = model(**batch.inputs, use_cache=False).logits
        torch._dynamo.reset()
        counter = CompileCounter()
        for layer in text_of(model).layers:
            layer.compile(backend=counter, fullgraph=True)
        logits = model(**batch.inputs, use_cache=False).logits
    torch.testing.assert_close(logits, expected)
    assert counter.frame_count == 1  # the layers share their code


@cell("1,000 calls", "memory stays where it was; nothing hangs on the model", families=("llava",))
def test_flat_memory(family):
    import gc

    # A new one: after an error, transformers 5.0 leaves wrappers on a stock model that go on collecting.
    model, batch = spread_weights(FAMILIES[family].build()), one_row(family)

    def tensors():
        gc.collect()
        return sum(isinstance(o, torch.Tensor) for o in gc.get_objects())

    with torch.no_grad(), pruning(model, ["divprune", "fastv"], 0.3):
        model.generate(**batch.inputs, max_new_tokens=2, do_sample=False)
        before = tensors()
        for _ in range(1000):
            model(**batch.inputs, use_cache=True)
        assert tensors() <= before + 5


@cell(
    "an error, out of memory or Ctrl-C in the policy, the encoder or a layer",
    "the model stays usable",
)
def test_faults(family):
    model, batch = get_model(family), ragged_batch(family)
    base = model.model
    tower = base.visual if hasattr(base, "visual") else base.vision_tower
    with pruning(model, "divprune", 0.3):
        expected = generate(model, batch.inputs)
        for error in (KeyboardInterrupt, RuntimeError, torch.OutOfMemoryError):
            for module in (tower, text_of(model), text_of(model).layers[1], model.lm_head):

                def fail(*args, error=error):
                    raise error("on purpose")

                handle = module.register_forward_pre_hook(fail)
                with pytest.raises(error):
                    generate(model, batch.inputs)
                handle.remove()
                assert_same(generate(model, batch.inputs), expected, atol=0)
