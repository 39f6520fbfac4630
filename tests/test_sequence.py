"""What is aligned with the sequence follows it: padding, hidden placeholders, labels, places of logits, token types."""

import copy
import inspect
import logging
import tempfile

import pytest
import torch
import transformers

from tokenprune import (
    PrunedCacheError,
    UnsupportedModelError,
    apply_pruning,
    expand_logits,
    list_policies,
    prune_labels,
    pruning,
    pruning_report,
    remove_pruning,
)
from tokenprune.policies import make_policy

from .families import (
    ENCODES_FIRST,
    FAMILIES,
    IMAGE,
    TRANSFORMERS_4,
    Batch,
    Picture,
    get_model,
    make_batch,
    ragged_batch,
    text_of,
)
from .oracles import assert_same, deep_masked, generate, keep_mask, masked, native_short, upper_masks

BOTH = ["llava", "qwen2_5_vl"]
STAGES = {
    "vision": ("divprune", 0.3),
    "decoder": ("fastv", 0.3),
    "two stages": (["grid", "vtw"], 0.5),
    "two budgets": (["divprune", "pyramiddrop"], [0.8, 0.4]),
    "auto": ("auto", 0.5),
}


def picture(family):
    return Picture(FAMILIES[family].sizes[0])


def visible_only(batch, mask):
    """The batch with the visual inputs' columns that the mask shows."""
    visuals = [(row, [c for c in columns if mask[row, c]], kind) for row, columns, kind in batch.visuals]
    return Batch({**batch.inputs, "attention_mask": mask}, [v for v in visuals if v[1]])


def seen_by_layers(full, mask, records):
    """The report in terms of visible placeholders: each record's places among them."""
    order = sorted(full.visuals, key=lambda v: (v[0], v[1][0]))
    order = [v for v in order if mask[v[0], v[1]].any()]
    out = []
    for record, (row, columns, _) in zip(records, order, strict=True):
        rank = mask[row, columns].long().cumsum(0) - 1
        assert record.n_before == int(mask[row, columns].sum())
        assert all(mask[row, columns[i]] for i in record.indices)
        cuts = tuple(cut._replace(indices=rank[cut.indices].tolist()) for cut in record.cuts)
        out.append(copy.copy(record))
        vars(out[-1]).update(indices=rank[record.indices].tolist(), cuts=cuts)
    return out


# ---------------------------------------------------------------- hidden placeholders


@pytest.mark.parametrize("label", STAGES)
@pytest.mark.parametrize("family", ["llava", "llava_next", "internvl"])  # stock Qwen-VL cannot number such rows
def test_placeholders_that_the_mask_hides_are_no_candidates(family, label):
    """A part of one picture, and a whole one, hidden as ablations do it: the oracle, and the report."""
    policy, keep = STAGES[label]
    model, p = get_model(family), picture(family)
    batch = make_batch(family, [[3, p, 2, p, 5], [9, p, 4], [2, p, 3]])
    mask = batch.inputs["attention_mask"].bool()
    (_, first, _), _, (row, third, _), (other, fourth, _) = sorted(batch.visuals, key=lambda v: (v[0], v[1][0]))
    mask[0, first[: len(first) // 2]] = False
    mask[row, third[::3]] = False
    mask[other, fourth] = False
    inputs = {**batch.inputs, "attention_mask": mask.long()}
    with pruning(model, policy, keep):
        run, records = generate(model, inputs), pruning_report(model)
    assert [r.sample for r in records] == [0, 0, 1]
    records = seen_by_layers(batch, mask, records)
    seen = visible_only(batch, mask)
    keep = keep_mask(seen, records)
    upper = upper_masks(seen, records)
    oracle = deep_masked(model, seen, keep, upper) if upper else masked(model, seen, keep)
    assert_same(run, oracle)


@pytest.mark.parametrize("seen", [1, 2, 8, 20])
def test_a_prompt_that_was_cut_off_in_its_picture(seen):
    """Right padding from inside the picture on: the row keeps something to attend to."""
    model = get_model("llava")
    batch = make_batch("llava", [[picture("llava"), 5]])
    mask = (torch.arange(batch.inputs["input_ids"].shape[1]) < seen).long()[None]
    with torch.no_grad(), pruning(model, "divprune", 0.25):
        logits = model(**{**batch.inputs, "attention_mask": mask}).logits
        records = pruning_report(model)
    assert sum(r.n_before for r in records) == max(0, seen - 1)  # a first token, then the picture
    assert logits.isfinite().all()
    n = 1 + sum(r.n_after for r in records) + mask.shape[1] - seen
    assert logits.shape[1] == n


def test_budgets_count_what_is_visible():
    model, batch = get_model("llava"), make_batch("llava", [[3, picture("llava"), 5]])
    mask = batch.inputs["attention_mask"].clone()
    columns = batch.visuals[0][1]
    mask[0, columns[:28]] = 0
    for keep, n in ((0.5, 4), (3, 3), (8, 8), (100, 8)):
        with torch.no_grad(), pruning(model, "divprune", keep):
            model(**{**batch.inputs, "attention_mask": mask})
            (record,) = pruning_report(model)
        assert (record.n_before, record.n_after) == (8, n)
        assert min(record.indices) >= 28


# ---------------------------------------------------------------- padding on the right


def right_padded(batch, lengths):
    """The batch with so many tokens of text behind each row, right-padded to the longest."""
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    most, generator = max(lengths), torch.Generator().manual_seed(3)
    more = torch.randint(3, 89, (len(ids), most), generator=generator)
    real = torch.arange(most) < torch.tensor(lengths)[:, None]
    out = {
        **batch.inputs,
        "input_ids": torch.cat([ids, more * real], 1),
        "attention_mask": torch.cat([mask, real.long()], 1),
    }
    if "mm_token_type_ids" in out:
        out["mm_token_type_ids"] = torch.nn.functional.pad(out["mm_token_type_ids"], (0, most))
    return out


@pytest.mark.parametrize("policy", ["divprune", "fastv", ["divprune", "fastv"]])
@pytest.mark.parametrize("family", BOTH)
def test_completions_padded_on_the_right_keep_their_places(family, policy):
    """As trl feeds them: the last places hold each row's completion and its padding, whatever was pruned."""
    model, batch = get_model(family), ragged_batch(family)
    lengths = [6, 3, 5, 1]
    inputs, most = right_padded(batch, lengths), 6
    with torch.no_grad(), pruning(model, policy, 0.3):
        logits = model(**inputs, logits_to_keep=most + 1).logits
        full = model(**inputs).logits
    assert logits.shape[1] == most + 1
    torch.testing.assert_close(full[:, -most - 1 :], logits)
    for row, n in enumerate(lengths):  # each row on its own, with no padding behind it
        short = {k: v[:, : v.shape[1] - most + n] if v.shape[:2] == inputs["input_ids"].shape else v
                 for k, v in inputs.items()}  # fmt: skip
        with torch.no_grad(), pruning(model, policy, 0.3):
            alone = model(**short, logits_to_keep=n + 1).logits[row]
        torch.testing.assert_close(logits[row, : n + 1], alone, rtol=0, atol=1e-6)


def test_the_last_token_that_a_policy_asks_is_no_padding():
    """FastV ranks by the attention of a row's last token."""
    model, batch = get_model("llava"), make_batch("llava", [[3, picture("llava"), 5]] * 2)
    inputs = right_padded(batch, [4, 1])
    with torch.no_grad(), pruning(model, "fastv", 0.3):
        model(**inputs)
        indices = pruning_report(model)[1].deep_indices
        short = {k: v[:, :-3] if v.shape[:2] == inputs["input_ids"].shape else v for k, v in inputs.items()}
        model(**short)
        assert pruning_report(model)[1].deep_indices == indices


# ---------------------------------------------------------------- places of logits


@pytest.mark.parametrize("policy", ["grid", "fastv", ["grid", "fastv"]])
def test_logits_to_keep_names_places_of_the_prompt(policy):
    model, batch = get_model("llava"), make_batch("llava", [[3, picture("llava"), 6]])
    length = batch.inputs["input_ids"].shape[1]
    text, last = [0, 2, length - 6, length - 1], torch.tensor([-1, -4])
    with torch.no_grad(), pruning(model, policy, 0.25):
        full = model(**batch.inputs).logits
        kept = keep_mask(batch, pruning_report(model))
        for record in pruning_report(model):
            for cut in record.cuts:
                kept[0, batch.visuals[0][1]] = False
                kept[0, torch.tensor(batch.visuals[0][1])[cut.indices]] = True
        rank = kept[0].long().cumsum(0) - 1
        for places in (torch.tensor(text), last, torch.tensor([length - 1])):
            wanted = places % length
            out = model(**batch.inputs, logits_to_keep=places).logits
            torch.testing.assert_close(out, full[:, rank[wanted]])
        as_mask = torch.zeros(length, dtype=torch.bool)
        as_mask[text] = True
        torch.testing.assert_close(model(**batch.inputs, logits_to_keep=as_mask).logits, full[:, rank[text]])
        gone = int((~kept[0]).nonzero()[0])
        with pytest.raises(ValueError, match="logits_to_keep"):
            model(**batch.inputs, logits_to_keep=torch.tensor([gone]))
        for n in (1, 3, 7, 20, length):  # as many of the last so many as are left
            out = model(**batch.inputs, logits_to_keep=n).logits
            torch.testing.assert_close(out, full[:, -int(kept[0, -n:].sum()) :])
    with torch.no_grad():
        everything = model(**batch.inputs).logits
        with pruning(model, policy, 1.0):
            for wanted in (torch.tensor(text), 7):
                chosen = everything[:, wanted] if isinstance(wanted, torch.Tensor) else everything[:, -wanted:]
                torch.testing.assert_close(model(**batch.inputs, logits_to_keep=wanted).logits, chosen)


def test_logits_to_keep_may_be_a_list_a_range_or_a_slice():
    model, batch = get_model("llava"), make_batch("llava", [[3, picture("llava"), 6]])
    length = batch.inputs["input_ids"].shape[1]
    with torch.no_grad(), pruning(model, "grid", 0.25):
        full = model(**batch.inputs).logits
        for wanted in (
            [length - 3, length - 1],
            range(length - 4, length),
            slice(-4, None),
            slice(-5, None, 2),
        ):
            places = torch.tensor(list(range(length)[wanted] if isinstance(wanted, slice) else wanted))
            out = model(**batch.inputs, logits_to_keep=wanted).logits
            torch.testing.assert_close(out, full[:, places - length])
        with pytest.raises(ValueError, match="logits_to_keep"):
            model(**batch.inputs, logits_to_keep=slice(0, length))


def test_places_that_differ_from_row_to_row_are_refused():
    model, batch = get_model("llava"), ragged_batch("llava")
    length = batch.inputs["input_ids"].shape[1]
    with torch.no_grad(), pruning(model, "grid", 0.3):
        with pytest.raises(ValueError, match=r"logits_to_keep=\[20\]"):
            model(**batch.inputs, logits_to_keep=torch.tensor([20]))
        model(**batch.inputs, logits_to_keep=torch.tensor([length - 1]))  # the end is the end of every row


# ---------------------------------------------------------------- labels and losses


def supervised(family):
    batch = ragged_batch(family)
    labels = batch.inputs["input_ids"].masked_fill(batch.inputs["attention_mask"] == 0, -100)
    return batch, labels.masked_fill(labels == IMAGE, -100)


@pytest.mark.parametrize("policy", ["grid", "fastv", ["grid", "fastv"]])
@pytest.mark.parametrize("family", BOTH)
def test_a_loss_outside_the_model_equals_the_one_inside(family, policy):
    model = get_model(family)
    batch, labels = supervised(family)
    with torch.no_grad(), pruning(model, policy, 0.3):
        expected = model(**batch.inputs, labels=labels).loss
        logits = model(**batch.inputs).logits
        short = prune_labels(model, labels)
        assert short.shape == logits.shape[:2]
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), short[:, 1:].flatten())
        assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
        wide = expand_logits(model, logits, fill=-1.0)
        assert wide.shape[:2] == labels.shape
        assert torch.equal(wide[:, -1], logits[:, -1])
        held = (wide != -1).any(-1)
        for row in range(len(labels)):  # in the order of the prompt
            assert torch.equal(wide[row, held[row]], logits[row, logits.shape[1] - int(held[row].sum()) :])
        with pytest.raises(ValueError, match="labels are 3 long"):
            prune_labels(model, labels[:, :3])
        with pytest.raises(ValueError, match="logits have 3 places"):
            expand_logits(model, logits[:, :3])
        failing = text_of(model).layers[0].register_forward_pre_hook(stop)
        with pytest.raises(RuntimeError, match="on purpose"):
            model(**make_batch(family, [[3, picture(family), 40]] * 4, 9).inputs)
        failing.remove()
        assert torch.equal(prune_labels(model, labels), short)  # a failed call is not the last
        text = make_batch(family, [[5], [5]]).inputs
        model(**text)
        assert prune_labels(model, text["input_ids"]) is text["input_ids"]
    with pytest.raises(ValueError, match="no pruning"):
        prune_labels(model, labels)


def stop(*args):
    raise RuntimeError("on purpose")


def test_labels_shrink_however_they_are_given():
    """By position, through PEFT applied before or after, merged or unwrapped."""
    peft = pytest.importorskip("peft")
    batch, labels = supervised("llava")
    stock = copy.deepcopy(get_model("llava"))
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    with torch.no_grad():
        with pruning(stock, "divprune", 0.3):
            expected = stock(**batch.inputs, labels=labels).loss.item()
            names = list(inspect.signature(stock.forward).parameters)
            by_place = [batch.inputs.get(name) for name in names[: names.index("labels")]] + [labels]
            assert stock(*by_place).loss.item() == expected
        before = copy.deepcopy(stock)
        wrapped = peft.get_peft_model(copy.deepcopy(stock), config)  # without a task type it takes anything by position
        apply_pruning(wrapped, "divprune", 0.3)
        assert wrapped(*by_place).loss.item() == pytest.approx(expected)
        assert wrapped(*by_place[:-1], labels=labels).loss.item() == pytest.approx(expected)
        wrapped = peft.get_peft_model(before, config)
        apply_pruning(wrapped, "divprune", 0.3)
        assert wrapped(**batch.inputs, labels=labels).loss.item() == pytest.approx(expected)
        assert wrapped.get_base_model()(**batch.inputs, labels=labels).loss.item() == pytest.approx(expected)
        merged = wrapped.merge_and_unload()
        assert merged(**batch.inputs, labels=labels).loss.item() == pytest.approx(expected)
        remove_pruning(merged)
        after = apply_pruning(copy.deepcopy(stock), "divprune", 0.3)
        wrapped = peft.get_peft_model(after, config)
        assert wrapped(**batch.inputs, labels=labels).loss.item() == pytest.approx(expected)


def test_labels_above_a_base_model_that_alone_is_pruned_are_refused():
    model = get_model("llava")
    batch, labels = supervised("llava")
    with torch.no_grad(), pruning(model.model, "divprune", 0.3):
        hidden = model.model(**batch.inputs).last_hidden_state
        assert model(**batch.inputs).logits.shape[1] == hidden.shape[1] < labels.shape[1]
        with pytest.raises(ValueError, match="on the whole model"):
            model(**batch.inputs, labels=labels)


def test_a_trainer_whose_loss_is_its_own(caplog):
    """Label smoothing outside the model: what `Trainer` calls `compute_loss_func`, with the labels shrunk."""
    pytest.importorskip("accelerate")
    model = copy.deepcopy(get_model("llava")).float()
    batch, labels = supervised("llava")
    rows = [
        dict(input_ids=batch.inputs["input_ids"][0], attention_mask=batch.inputs["attention_mask"][0],
             pixel_values=batch.inputs["pixel_values"][0].float(), labels=labels[0])
    ] * 2  # fmt: skip
    losses = []

    def loss(outputs, labels, **kwargs):
        logits = outputs.logits
        if logits.shape[1] != labels.shape[1]:
            labels = prune_labels(model, labels)
        losses.append(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()))
        return losses[-1]

    apply_pruning(model, "divprune", 0.3)
    with tempfile.TemporaryDirectory() as folder, caplog.at_level(logging.WARNING, "tokenprune"):
        options = transformers.TrainingArguments(
            folder, max_steps=2, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
            per_device_train_batch_size=2, learning_rate=0.0,
        )  # fmt: skip
        transformers.Trainer(model, options, train_dataset=rows, compute_loss_func=loss).train()
    assert len(losses) == 2
    assert all(x.isfinite() for x in losses)
    assert caplog.text.count("prune_labels") == 1  # said once
    with tempfile.TemporaryDirectory() as folder:
        options = transformers.TrainingArguments(
            folder, max_steps=1, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
            per_device_train_batch_size=2, label_smoothing_factor=0.1,
        )  # fmt: skip
        with pytest.raises(ValueError, match="compute_loss_func that calls"):
            transformers.Trainer(model, options, train_dataset=rows).train()


def test_heads_that_read_one_place_of_a_row_are_refused():
    if TRANSFORMERS_4:
        pytest.skip("this transformers has no such class")
    config = get_model("gemma3").config
    model = transformers.Gemma3ForSequenceClassification(copy.deepcopy(config))
    with pytest.raises(UnsupportedModelError, match="Gemma3ForSequenceClassification is not supported"):
        apply_pruning(model, "divprune")
    assert apply_pruning(model.model, "divprune") is model.model  # its base model gives what is left
    remove_pruning(model.model)


# ---------------------------------------------------------------- packed rows and chunks


@pytest.mark.parametrize("policy", ["grid", "fastv"])
@pytest.mark.parametrize("family", BOTH)
def test_packed_rows_are_refused(family, policy):
    model = get_model(family)
    a, b = (make_batch(family, [[3, picture(family), n]], seed=n) for n in (4, 6))
    ids = torch.cat([a.inputs["input_ids"], b.inputs["input_ids"]], 1)
    along = torch.cat([torch.arange(x.inputs["input_ids"].shape[1]) for x in (a, b)])
    packed = {k: torch.cat([a.inputs[k], b.inputs[k]]) for k in a.inputs if "pixel" in k or "grid" in k}
    packed |= dict(input_ids=ids, position_ids=along[None] if family == "llava" else along.expand(4, 1, -1))
    length = ids.shape[1]
    with torch.no_grad():
        expected = model(**packed, use_cache=False).logits
        with pruning(model, policy, 1.0):
            assert torch.equal(model(**packed, use_cache=False).logits, expected)
        with pruning(model, policy, 0.3):
            with pytest.raises(ValueError, match="several samples packed into one row"):
                model(**packed, use_cache=False)
            model(**packed, use_cache=True)  # with a cache, transformers does not look for samples either
            borders = torch.tensor([0, length], dtype=torch.int32)
            with pytest.raises(ValueError, match="cu_seq_lens_q"):
                model(**{**packed, "position_ids": None}, use_cache=False, cu_seq_lens_q=borders)
            one = {k: v for k, v in a.inputs.items() if k != "attention_mask"}
            model(**one, use_cache=False)


@pytest.mark.skipif(not ENCODES_FIRST, reason="this transformers feeds no pictures in chunks")
@pytest.mark.parametrize("policy", ["divprune", "fopru", "fastv"])
def test_prefill_in_chunks_is_refused(policy):
    model, batch = get_model("llava"), make_batch("llava", [[3, picture("llava"), 5]])
    inputs = {"prefill_chunk_size": 16}
    expected = generate(model, batch.inputs, **inputs)
    text = make_batch("llava", [[40]]).inputs
    with pruning(model, policy, 0.3):
        for size in (16, 1000):
            with pytest.raises(ValueError, match=f"prefill_chunk_size={size}"):
                generate(model, batch.inputs, prefill_chunk_size=size)
        twin = copy.deepcopy(model)
        assert generate(model, text, **inputs)
    with pytest.raises(ValueError, match="prefill_chunk_size"):
        generate(twin, batch.inputs, **inputs)
    with pruning(model, policy, 1.0):
        assert_same(generate(model, batch.inputs, **inputs), expected, atol=1e-9)


# ---------------------------------------------------------------- later turns


@pytest.mark.parametrize("family", [f for f in FAMILIES if FAMILIES[f].blocks])
@pytest.mark.parametrize("pictures", [1, 3])
def test_token_types_of_the_whole_talk_in_a_second_turn(family, pictures):
    """As the processor gives them, one for each token of the prompt, pruned ones included."""
    model, p = get_model(family), Picture((24, 24))
    batch = make_batch(family, [[3, *[p, 2] * pictures], [2, *[p, 3] * pictures]])
    types = batch.inputs["token_type_ids"]
    later = int(family == "paligemma")
    with torch.no_grad(), pruning(model, "random", 0.3):
        out = model.generate(
            **batch.inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, suppress_tokens=[IMAGE]
        )
        kept = keep_mask(batch, pruning_report(model))
        more = torch.randint(3, 89, (2, 7), generator=torch.Generator().manual_seed(1))
        ids = torch.cat([out.sequences, more], 1)
        new = ids.shape[1] - types.shape[1]
        mask = torch.nn.functional.pad(batch.inputs["attention_mask"], (0, new), value=1)
        turn = dict(input_ids=ids, attention_mask=mask)
        cache = out.past_key_values
        without = generate(model, turn, past_key_values=copy.deepcopy(cache))
        if ENCODES_FIRST:
            turn["token_type_ids"] = torch.nn.functional.pad(types, (0, new), value=later)
            assert_same(generate(model, turn, past_key_values=cache), without)
    full = Batch({**batch.inputs, **turn, "token_type_ids": torch.nn.functional.pad(types, (0, new), value=later)}, [])
    assert_same(without, masked(model, full, torch.nn.functional.pad(kept, (0, new), value=True)))


@pytest.mark.skipif(not ENCODES_FIRST, reason="this transformers drops the pixels of a second turn")
@pytest.mark.parametrize("turns", [("compact", "original"), ("original", "compact")])
def test_positions_may_be_kept_in_one_turn_and_renumbered_in_another(turns):
    """What is renumbered stays renumbered: later positions go on from it."""
    model, p = get_model("llava"), Picture((24, 24))
    first, second = make_batch("llava", [[3, p, 4], [5, p, 2]]), make_batch("llava", [[3, p, 8], [6, p, 5]], 5)
    with torch.no_grad():
        with pruning(model, "grid", 0.2, positions=turns[0]):
            out = model.generate(**first.inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
            kept = [keep_mask(first, pruning_report(model))]
        ids = torch.cat([out.sequences, second.inputs["input_ids"]], 1)
        mask = torch.nn.functional.pad(first.inputs["attention_mask"], (0, 3), value=1)
        mask = torch.cat([mask, second.inputs["attention_mask"]], 1)
        turn = dict(input_ids=ids, attention_mask=mask, pixel_values=second.inputs["pixel_values"])
        with pruning(model, "grid", 0.2, positions=turns[1]):
            run = generate(model, turn, past_key_values=out.past_key_values)
            kept.append(keep_mask(second, pruning_report(model)))
    pixels = torch.stack([first.inputs["pixel_values"], second.inputs["pixel_values"]], 1).flatten(0, 1)
    full = Batch({**turn, "pixel_values": pixels}, [])
    kept[0] = torch.nn.functional.pad(kept[0], (0, 3), value=True)
    closed = torch.cat([~k if how == "compact" else torch.zeros_like(k) for k, how in zip(kept, turns, strict=True)], 1)
    positions = (mask.cumsum(1) - 1 - closed.long().cumsum(1)).clamp(min=0)
    assert_same(run, masked(model, full, torch.cat(kept, 1), positions))


@pytest.mark.skipif(not ENCODES_FIRST, reason="this transformers drops the pixels of a second turn")
@pytest.mark.parametrize("policy", ["fastv", "vtw", "dart", "pyramiddrop", "divprune", "auto"])
@pytest.mark.parametrize("crop", [1, 4, 9])
def test_cropping_into_the_text_of_a_later_turn(policy, crop):
    """A picture in each of two turns, then back into the second's text: as if that had not been said."""
    model, p = get_model("llava"), Picture((24, 24))
    first, second = make_batch("llava", [[3, p, 4]]), make_batch("llava", [[3, p, 9]], 2)
    greedy = dict(do_sample=False, return_dict_in_generate=True)
    with pruning(model, policy, 0.3):
        out = model.generate(**first.inputs, max_new_tokens=3, **greedy)
        ids = torch.cat([out.sequences, second.inputs["input_ids"]], 1)
        turn = dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=second.inputs["pixel_values"])
        with torch.no_grad():
            cache, fed = out.past_key_values, ids[:, out.past_key_values.get_seq_length() :]
            whole = model(
                input_ids=fed, attention_mask=torch.ones_like(ids), pixel_values=turn["pixel_values"],
                past_key_values=copy.deepcopy(cache),
            ).past_key_values  # fmt: skip
            whole.crop(-crop)
            assert whole.get_seq_length() == ids.shape[1] - crop
            again = model(input_ids=ids[:, -crop:], attention_mask=torch.ones_like(ids), past_key_values=whole).logits
            expected = model(
                input_ids=fed, attention_mask=torch.ones_like(ids), pixel_values=turn["pixel_values"],
                past_key_values=copy.deepcopy(cache),
            ).logits  # fmt: skip
            torch.testing.assert_close(again, expected[:, -crop:], rtol=0, atol=1e-9)
            with pytest.raises(PrunedCacheError, match="crop"):
                whole.crop(-crop - 30)


def with_window(family, window):
    """A copy whose sliding layers see so many columns; all layers, where the config does not tell them apart."""
    model = copy.deepcopy(get_model(family))
    text = text_of(model)
    for config in (text.config, model.config.text_config, *(layer.self_attn.config for layer in text.layers)):
        config.sliding_window = window
    for layer in text.layers:
        if getattr(layer.self_attn, "sliding_window", None) is not None:
            layer.self_attn.sliding_window = window
    return model


@pytest.mark.parametrize("policy", ["fastv", "pyramiddrop", ["grid", "fastv"]])
@pytest.mark.parametrize("family", ["mistral3", "cohere2_vision"])
def test_layers_that_hold_less_keep_their_windows(family, policy):
    """With a cache a layer sees its window because it holds no more, without one because of its mask."""
    if policy == "pyramiddrop" and not ENCODES_FIRST:
        pytest.skip("without a cache, this transformers has it choose by the answer so far as well")
    model, batch = with_window(family, 6), make_batch(family, [[3, picture(family), 8]])
    options = dict(steps=5, suppress_tokens=[IMAGE])
    with pruning(model, policy, 0.4):
        cached = generate(model, batch.inputs, **options)
        assert_same(generate(model, batch.inputs, use_cache=False, **options), cached)
    wide = with_window(family, 4096)
    with pruning(wide, policy, 0.4):
        assert not torch.allclose(generate(wide, batch.inputs, **options).logits, cached.logits)


@pytest.mark.skipif(not ENCODES_FIRST, reason="this transformers drops the pixels of a second turn")
@pytest.mark.parametrize("policy", ["grid", "fastv"])
def test_windows_that_end_inside_the_talk_refuse_pictures_of_later_turns(policy):
    """Where padding between the turns would use them up: rows that lose different numbers, or a decoder stage."""
    p = picture("cohere2_vision")
    for window, rows in ((20, [[3, p, 2, p, 4], [30, p, 5]]), (4096, [[3, p, 2, p, 4], [30, p, 5]])):
        model = with_window("cohere2_vision", window)
        first, second = make_batch("cohere2_vision", [[3, p, 4]] * 2), make_batch("cohere2_vision", rows, 2)
        with pruning(model, policy, 0.3):
            out = model.generate(**first.inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
            ids = torch.cat([out.sequences, second.inputs["input_ids"]], 1)
            mask = torch.nn.functional.pad(first.inputs["attention_mask"], (0, 3), value=1)
            mask = torch.cat([mask, second.inputs["attention_mask"]], 1)
            turn = dict(input_ids=ids, attention_mask=mask, pixel_values=second.inputs["pixel_values"])
            if window == 4096:
                generate(model, turn, past_key_values=out.past_key_values)
                continue
            with pytest.raises(PrunedCacheError, match="window of 20"):
                generate(model, turn, past_key_values=out.past_key_values)


@pytest.mark.skipif(not ENCODES_FIRST, reason="needs features that are computed beforehand")
@pytest.mark.parametrize("policy", ["cdpruner", "fastv", "sparsevlm", "auto"])
def test_what_is_kept_does_not_hang_on_earlier_calls(policy):
    """Features that are fed twice, with a prompt and with a longer one: only `generate` goes on with an answer."""
    model, batch = get_model("llava"), make_batch("llava", [[3, picture("llava"), 5]])
    ids = batch.inputs["input_ids"]

    def kept(ids, features, **options):
        model(input_ids=ids, attention_mask=torch.ones_like(ids), mm_encoder_outputs=features, **options)
        return [(r.indices, r.cuts) for r in pruning_report(model)]

    with torch.no_grad(), pruning(model, policy, 0.3):
        encode = lambda: {"image": model.model.get_image_features(pixel_values=batch.inputs["pixel_values"])}
        for cached in (True, False):
            for token in range(5, 50, 5):
                longer = torch.cat([ids, torch.tensor([[token]])], 1)
                alone, shared = kept(longer, encode()), encode()
                kept(ids, shared, use_cache=cached)
                assert kept(longer, shared, use_cache=cached) == alone
        twice = [generate(model, batch.inputs, steps=3, use_cache=False) for _ in range(2)]
        assert_same(*twice, atol=0)


# ---------------------------------------------------------------- static caches, and budgets of everything


@pytest.mark.parametrize("family", [f for f in FAMILIES if FAMILIES[f].hybrid])
def test_a_static_cache_under_linear_attention(family):
    model, batch = get_model(family), make_batch(family, [[3, picture(family), 5], [4, picture(family), 4]])
    stock = generate(model, batch.inputs, cache_implementation="static")
    with pruning(model, "grid", 1.0):
        assert_same(generate(model, batch.inputs, cache_implementation="static"), stock, atol=0)
    with pruning(model, "grid", 0.3):
        run = generate(model, batch.inputs, cache_implementation="static")
        assert_same(run, generate(model, batch.inputs), atol=1e-3)
        kept = keep_mask(batch, pruning_report(model))
    assert_same(run, native_short(model, batch, kept), atol=1e-3)


@pytest.mark.parametrize("family", [f for f in FAMILIES if FAMILIES[f].blocks or FAMILIES[f].hybrid])
def test_a_static_cache_passes_where_nothing_leaves(family):
    """Everything kept, or no picture at all."""
    model, batch = get_model(family), make_batch(family, [[3, picture(family), 5]])
    text = make_batch(family, [[6]])
    static = dict(cache_implementation="static")
    for keep, inputs in ((1.0, batch.inputs), (10**6, batch.inputs), (0.3, text.inputs)):
        expected = generate(model, inputs, **static)
        with pruning(model, "grid", keep):
            assert_same(generate(model, inputs, **static), expected, atol=0)


@pytest.mark.parametrize("keep", [1.0, 10**9])
@pytest.mark.parametrize("policy", list_policies())
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_a_budget_of_everything_is_the_stock_model(family, policy, keep):
    """To the bit, whatever a policy does otherwise."""
    model, batch = get_model(family), ragged_batch(family)
    cls = type(make_policy(policy))
    absent = {"qwen2_5_vl": "encoder", "gemma3": "encoder decoder"}.get(family, "")
    if any(stage in absent for stage in cls.stage.split(", ")):
        with pytest.raises(ValueError, match="does not allow"):
            apply_pruning(model, policy, keep)
        return
    apply_pruning(model, policy, keep)
    run, records = generate(model, batch.inputs, steps=4), pruning_report(model)
    remove_pruning(model)
    expected = generate(model, batch.inputs, steps=4)
    assert torch.equal(run.logits, expected.logits)
    assert all(r.n_after == r.n_before and not r.cuts for r in records)


def test_upper_layers_stay_shorter_when_a_later_turn_cuts_nothing():
    """The second picture stays whole, but the layers above the cut hold less of the first one."""
    if not ENCODES_FIRST:
        pytest.skip("this transformers drops the pixels of a second turn")
    model, p = get_model("llava"), Picture((24, 24))
    first, second = make_batch("llava", [[3, p, 4]]), make_batch("llava", [[3, p, 9]], 2)
    with pruning(model, "fastv", 0.3):
        out = model.generate(**first.inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        upper = {i: torch.nn.functional.pad(m, (0, 3), value=True)
                 for i, m in upper_masks(first, pruning_report(model)).items()}  # fmt: skip
        ids = torch.cat([out.sequences, second.inputs["input_ids"]], 1)
        turn = dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=second.inputs["pixel_values"])
        with pruning(model, "fastv", 36):  # all of it
            run = generate(model, turn, past_key_values=out.past_key_values)
            assert pruning_report(model)[0].cuts == ()
    pixels = torch.cat([first.inputs["pixel_values"], second.inputs["pixel_values"]])
    full = Batch({**turn, "pixel_values": pixels}, [])
    seen = torch.ones_like(ids, dtype=torch.bool)
    pad = lambda m: torch.nn.functional.pad(m, (0, ids.shape[1] - m.shape[1]), value=True)
    assert_same(run, deep_masked(model, full, seen, {i: pad(m) for i, m in upper.items()}))
