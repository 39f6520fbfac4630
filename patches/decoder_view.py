"""What a decoder-stage policy sees of one row. What few policies read is worked out when it is read."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..device import to_device
from ..ops import attention_received
from ..policies.types import DecoderView
from .config import PruningConfig
from .decoder_call import DecoderCall


class RowView(DecoderView):
    """One row at a decoder layer before which tokens may leave. It is constructed like `DecoderView`, or by `of`."""

    @classmethod
    def of(cls, config: PruningConfig, decoder: DecoderCall, layer: int, hidden: Tensor, row: int) -> RowView:
        """The view of a row, some of whose fields are worked out when they are read.

        Args:
            config: of the pruning.
            decoder: the decoder stage as it stands at that layer; queries and keys of the layer below have been read.
            layer: index of the layer.
            hidden: (B, M, D), what the layer is about to get.
            row: of the batch.
        """
        prefill, packing = decoder.prefill, decoder.packing
        assert prefill.heads is not None
        query, key, scaling = prefill.heads
        query, valid = query[row : row + 1], decoder.padding[row]  # of the layer whose attention is read
        total, device = len(valid), query.device
        past = total - decoder.valid.shape[1]
        key = key[row : row + 1, :, :total]  # a static cache holds empty columns after them

        def visible(rows: Tensor) -> Tensor:
            order = torch.arange(total, device=device)
            return (valid.to(device) & (order <= (rows + past)[:, None]))[None]

        def received(rows: Tensor) -> Tensor:
            rows = to_device(rows, device)
            return attention_received(query[:, :, rows], key, mask=visible(rows), scaling=scaling)[0, past:]

        def received_by_head(rows: Tensor) -> Tensor:
            rows = to_device(rows, device)
            heads = query[0, :, None, rows]  # each head as a row of a batch
            keys = key[0].repeat_interleave(len(heads) // key.shape[1], 0)[:, None]
            mask = visible(rows).expand(len(heads), -1, -1)
            return attention_received(heads, keys, mask=mask, scaling=scaling)[:, past:]

        def embeds() -> Tensor:
            fed = prefill.embeds[row] if packing is None else prefill.embeds[row, packing.index[row]]
            return fed.to(device)

        inputs = prefill.inputs[row]
        view = object.__new__(cls)
        # The dataclass is frozen. Its fields that are missing here are the properties below.
        vars(view).update(
            visual=[to_device(each.columns, device) for each in inputs],
            n_keep=[each.n_keep for each in inputs],
            received=received,
            received_by_head=received_by_head,
            hidden=lambda: config.text.norm(hidden[row]).to(device),
            embeds=embeds,
            layer=layer,
            n_layers=len(config.text.layers),
            lowest=config.first_decoder_cut,
            entered=[each.entered for each in inputs],
            counts=[min(each.counts[layer], len(each.columns)) for each in inputs],
            memory=prefill.memory.setdefault(row, {}),
            _columns=[each.columns for each in inputs],
            _prompt=prefill.prompt[row],
            _keys=key[0, :, past:],
        )
        return view

    @functools.cached_property
    def text(self) -> Tensor:
        visual = torch.cat(vars(self)["_columns"])
        is_text = vars(self)["_prompt"].clone()
        is_text[visual] = False
        is_text[: int(visual.min())] = False
        return to_device(is_text.nonzero()[:, 0], self.visual[0].device)

    @functools.cached_property
    def last(self) -> int:
        return int(vars(self)["_prompt"].nonzero()[-1])

    @functools.cached_property
    def keys(self) -> Tensor:
        keys: Tensor = vars(self)["_keys"]
        return keys.transpose(0, 1).flatten(1)
