"""FastV: what the last token attends to."""

import torch

from tokenprune import pruning, pruning_report

from ..families import even_batch, get_model, text_of
from ..oracles import generate


def test_fastv_ranks_by_the_last_token():
    model, batch = get_model("llava"), even_batch()
    with pruning(model, "fastv@final", 5):
        generate(model, batch.inputs, steps=1)
        records = pruning_report(model)
    text = text_of(model)
    before = text.config._attn_implementation
    text.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            weights = model(**batch.inputs, output_attentions=True).attentions[1].mean(1)[:, -1]
    finally:
        text.set_attn_implementation(before)
    for record, (row, columns, _) in zip(records, batch.visuals, strict=True):
        assert record.deep_indices == weights[row, columns].topk(5).indices.sort().values.tolist()
