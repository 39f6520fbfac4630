"""What a decoder-stage policy sees of a batch, row by row."""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..device import index_rows, to_device, to_device_together
from ..ops import attention_received
from ..policies.types import DecoderView
from .config import PruningConfig
from .decoder_call import DecoderCall

#: Entries of the largest mask that is made for the texts of several rows together.
_MOST_MASKED = 2**26


class Readings:
    """What the rows of a batch share before one layer. What few policies read is worked out when it is read.

    Args:
        config: of the pruning.
        decoder: the decoder stage as it stands at that layer; queries and keys of the layer below have been read.
        layer: index of the layer.
        hidden: (B, M, D), what the layer is about to get.

    Attributes:
        visual: by row from which tokens may leave, the columns of each visual input's tokens, on the host.
        query: (B, H, M, d), of the layer below.
        key: (B, H_kv, P + M, d), likewise.
        past: P, columns of earlier calls.
    """

    def __init__(self, config: PruningConfig, decoder: DecoderCall, layer: int, hidden: Tensor):
        assert decoder.prefill.heads is not None
        self.config, self.decoder, self.layer, self._hidden = config, decoder, layer, hidden
        self.query, key, self._scaling = decoder.prefill.heads
        self._padding = decoder.padding  # of the layer whose attention is read
        total = self._padding.shape[1]
        self.key = key[:, :, :total]  # a static cache holds empty columns after them
        self.past = total - decoder.valid.shape[1]
        self._prompt = decoder.prefill.prompt
        given = decoder.prefill.inputs
        self.visual = {row: [each.columns for each in inputs] for row, inputs in enumerate(given) if inputs}

    def views(self) -> list[RowView]:
        """Of the rows from which tokens may leave. They hold this object, which does not hold them."""
        columns = iter(to_device_together([each for row in self.visual.values() for each in row], self.device))
        return [RowView.of(self, row, list(itertools.islice(columns, len(own)))) for row, own in self.visual.items()]

    @functools.cached_property
    def texts_on_host(self) -> dict[int, Tensor]:
        """By row, `DecoderView.text` on the host."""
        return {row: _text(torch.cat(columns), self._prompt[row]) for row, columns in self.visual.items()}

    @functools.cached_property
    def texts(self) -> dict[int, Tensor]:
        """By row, `DecoderView.text`."""
        texts = to_device_together(list(self.texts_on_host.values()), self.device)
        return dict(zip(self.texts_on_host, texts, strict=True))

    @property
    def device(self) -> torch.device:
        """Where queries are, and so all that a policy is shown."""
        return self.query.device

    @functools.cached_property
    def hidden(self) -> Tensor:
        """(B, M, D), after the model's final norm."""
        normed: Tensor = self.config.text.norm(self._hidden)
        return normed.to(self.device)

    def visible(self, rows: slice | Tensor, columns: Tensor) -> Tensor:
        """(R, Q, P + M) bool, what the queries at `columns`, (Q,) or (R, Q), of `rows` of the batch may attend to."""
        order = torch.arange(self._padding.shape[1], device=self.device)
        valid = self._padding.to(self.device)[rows]
        return valid[:, None] & (order <= (columns + self.past)[..., None])

    def received(self, row: int, columns: Tensor) -> Tensor:
        """(M,) float32, attention of the queries at `columns` of one row.

        On a GPU the texts of all rows are computed together, when the first is asked for.
        """
        if "texts" in vars(self) and columns is self.texts[row] and row in self._from_texts:
            return self._from_texts[row]
        columns, one = to_device(columns, self.device), slice(row, row + 1)
        query = self.query[one, :, columns]
        mask = self.visible(one, columns)
        return attention_received(query, self.key[one], mask=mask, scaling=self._scaling)[0, self.past :]

    def received_by_head(self, row: int, columns: Tensor) -> Tensor:
        """(H, M) float32, likewise by each query head."""
        columns, one = to_device(columns, self.device), slice(row, row + 1)
        heads = self.query[row, :, None, columns]  # each head as a row of a batch
        keys = self.key[row].repeat_interleave(len(heads) // self.key.shape[1], 0)[:, None]
        mask = self.visible(one, columns).expand(len(heads), -1, -1)
        return attention_received(heads, keys, mask=mask, scaling=self._scaling)[:, self.past :]

    def last(self, row: int) -> int:
        """`DecoderView.last` of one row."""
        return int(self._prompt[row].nonzero()[-1])

    @functools.cached_property
    def _from_texts(self) -> dict[int, Tensor]:
        """By row, (M,) float32, attention of its text; empty where rows are better computed one by one."""
        texts = {row: text for row, text in self.texts_on_host.items() if len(text)}
        size = len(texts) * max(map(len, texts.values()), default=0) * self._padding.shape[1]
        if len(texts) < 2 or self.device.type == "cpu" or size > _MOST_MASKED:
            return {}
        lengths = torch.tensor([len(text) for text in texts.values()])
        columns = to_device(pad_sequence([*texts.values()], batch_first=True), self.device)
        is_text = to_device(torch.arange(columns.shape[1]) < lengths[:, None], self.device)
        rows: slice | Tensor = slice(None)
        if len(texts) < len(self.query):
            rows = to_device(torch.tensor([*texts]), self.device)
        query = self.query[rows].take_along_dim(columns[:, None, :, None], 2)
        mask = self.visible(rows, columns)
        received = attention_received(query, self.key[rows], rows=is_text, mask=mask, scaling=self._scaling)
        return dict(zip(texts, received[:, self.past :], strict=True))


class RowView(DecoderView):
    """One row at a decoder layer before which tokens may leave. It is constructed like `DecoderView`, or by `of`.

    Attributes:
        row: of the batch.
    """

    row: int

    @classmethod
    def of(cls, readings: Readings, row: int, visual: list[Tensor]) -> RowView:
        """The view of a row, some of whose fields are worked out when they are read.

        Args:
            readings: what the rows share.
            row: of the batch.
            visual: for each of its visual inputs, the columns of the tokens, on the device.
        """
        config, decoder, layer = readings.config, readings.decoder, readings.layer
        prefill, packing = decoder.prefill, decoder.packing

        def embeds() -> Tensor:
            fed = prefill.embeds[row] if packing is None else prefill.embeds[row, packing.index[row]]
            return fed.to(readings.device)

        inputs = prefill.inputs[row]
        view = object.__new__(cls)
        # The dataclass is frozen. Its fields that are missing here are the properties below.
        vars(view).update(
            row=row,
            visual=visual,
            n_keep=[each.n_keep for each in inputs],
            received=lambda rows: readings.received(row, rows),
            received_by_head=lambda rows: readings.received_by_head(row, rows),
            hidden=lambda: readings.hidden[row],
            embeds=embeds,
            layer=layer,
            n_layers=len(config.text.layers),
            lowest=config.first_decoder_cut,
            entered=[each.entered for each in inputs],
            counts=[min(each.counts[layer], len(each.columns)) for each in inputs],
            memory=prefill.memory.setdefault(row, {}),
            _readings=readings,
        )
        return view

    # A copy with other fields (`dataclasses.replace`) has no readings, and all fields.

    def at(self, i: int, values: Tensor) -> Tensor:
        readings: Readings | None = vars(self).get("_readings")
        return super().at(i, values) if readings is None else index_rows(values, readings.visual[self.row][i])

    @functools.cached_property
    def text(self) -> Tensor:
        readings: Readings = vars(self)["_readings"]
        return readings.texts[self.row]

    @functools.cached_property
    def last(self) -> int:
        readings: Readings = vars(self)["_readings"]
        return readings.last(self.row)

    @functools.cached_property
    def keys(self) -> Tensor:
        readings: Readings = vars(self)["_readings"]
        return readings.key[self.row, :, readings.past :].transpose(0, 1).flatten(1)


def _text(visual: Tensor, prompt: Tensor) -> Tensor:
    """(T,) columns of the text after the first of the visual ones, of a (M,) bool prompt."""
    is_text = prompt.clone()
    is_text[visual] = False
    is_text[: int(visual.min())] = False
    return is_text.nonzero()[:, 0]
