"""What a pruned conversation must equal: the stock model under the same calls, with columns hidden from it.

Two models of the same weights take every turn. Hooks on the stock one hide from each decoder layer the columns
that the pruned one has dropped there, in this turn or in an earlier one, as its report says. `hold` is the check
of one conversation; a failure prints the call that repeats it.

Hybrids take single turns only, held against the native-short oracle: what has passed a linear-attention layer
cannot be hidden from it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import StaticCache

from tokenprune import PrunedCacheError, apply_pruning, remove_pruning

from ..builders import EOS, IMAGE, VIDEO, spread_weights
from ..families import FAMILIES, make_batch, text_of
from .hiding import Hiding, Seen, listening
from .talks import EXPANDED, Setting, Turn, stages
from .verdicts import account, check_shrunk, compare, forget, hold_hybrid, refusal, says

_MODELS: dict[str, tuple[Any, Any]] = {}


def models(family: str) -> tuple[Any, Any]:
    """A model to prune and a stock one of the same weights, with twice the decoder layers of the table's."""
    if family not in _MODELS:
        torch.manual_seed(0)
        shallow = FAMILIES[family].build()
        config = copy.deepcopy(shallow.config)
        text = config.get_text_config()
        text.num_hidden_layers *= 2
        if getattr(text, "layer_types", None):
            text.layer_types = list(text.layer_types) * 2
        stock = spread_weights(type(shallow)(config))
        _MODELS[family] = copy.deepcopy(stock), stock
    return _MODELS[family]


def hold(family: str, turns: list[Turn], cache: str = "dynamic", seed: int = 0) -> list[str]:
    """Hold a conversation against the stock model. Returns what was refused.

    Args:
        family: of `FAMILIES`.
        turns: the first has a setting.
        cache: "dynamic", "static", or "none" (one turn).
        seed: of texts and pictures, and of sampling.
    """
    talk = Talk(family, turns, cache, seed)
    try:
        if FAMILIES[family].hybrid:
            talk.apply(turns[0].setting)
            hold_hybrid(talk)
        else:
            for i in range(len(turns)):
                if not talk.take(i):
                    break
    except Exception as error:
        call = f"hold({family!r}, {turns!r}, {cache!r}, {seed})"
        raise AssertionError(f"{type(error).__name__}: {error}\nin turn {talk.turn + 1} of\n{call}") from error
    finally:
        remove_pruning(talk.pruned)
    return talk.refused


class Talk:
    """A conversation as it stands.

    Attributes:
        ids, mask, types: (B, T), what the caller has; the last token may not be in the caches yet.
        real: (B, T), the mask without its holes.
        caches: of the pruned and of the stock model.
        seen: what is left of its columns.
        visuals: (row, columns, kind, grid) of all pictures so far.
    """

    def __init__(self, family: str, turns: list[Turn], cache: str, seed: int):
        self.family, self.turns, self.kind, self.seed = family, turns, cache, seed
        self.pruned, self.stock = models(family)
        for model in (self.pruned, self.stock):
            if hasattr(model.model, "rope_deltas"):
                model.model.rope_deltas = None  # of another conversation
        self.batches = [make_batch(family, turn.rows, seed + 31 * i) for i, turn in enumerate(turns)]
        self.setting: Setting | None = None
        self.turn, self.refused, self.torn = 0, [], False
        self.fresh = 0  # pictures of the last turn
        self.faithful = True  # nothing but keep=1.0 so far
        rows = len(turns[0].rows)
        self.ids, self.mask = torch.zeros(rows, 0).long(), torch.zeros(rows, 0).long()
        self.types, self.real = torch.zeros(rows, 0).long(), torch.zeros(rows, 0).long()
        self.seen = Seen.nothing(len(text_of(self.stock).layers), rows)
        self.visuals: list[tuple[int, torch.Tensor, str, Any]] = []
        self.caches = [self._cache(), self._cache()]

    def _cache(self) -> Any:
        if self.kind != "static" or FAMILIES[self.family].hybrid:
            return None
        length = sum(
            b.inputs["input_ids"].shape[1] + turn.steps for b, turn in zip(self.batches, self.turns, strict=True)
        )
        return StaticCache(config=self.stock.config.get_text_config(), max_cache_len=length)

    @property
    def past(self) -> int:
        return 0 if self.caches[1] is None else int(self.caches[1].get_seq_length())

    # ------------------------------------------------------------ one turn

    def take(self, i: int) -> bool:
        """Take a turn with both models. False: the conversation cannot go on."""
        self.turn, turn = i, self.turns[i]
        marked = self.setting is not None and self.setting.history is not None  # pictures of the turn before
        if turn.setting is not None:
            self.apply(turn.setting)
        if turn.crop and self.past > 1:
            self._crop(min(turn.crop, self.past - 1))
            if self.family.startswith("qwen") and (self.torn or self._ends_in_picture()):
                return False  # its coordinates are those of whole pictures with text around them
        inputs, visuals = self._inputs(turn)
        try:
            ran, fed = self._run_pruned(turn, inputs)
        except (ValueError, PrunedCacheError) as error:
            name = refusal(self, turn, error)
            if name is None:
                raise
            self.refused.append(name)
            return False
        visible = inputs["attention_mask"].bool()
        self.seen = self.seen.longer(visible.shape[1])
        forget(self, self.visuals[: len(self.visuals) - len(visuals)], ran.past_key_values, EXPANDED.get(turn.how, 1))
        begins = turn.how != "forward" or inputs["input_ids"].shape[1] > 1
        if marked and self.setting.history is not None and begins:
            earlier = self.visuals[: len(self.visuals) - len(visuals)]
            fresh = earlier[len(earlier) - self.fresh :]
            if not turn.crop:  # of a picture that was cut in two, its whole number of tokens counts
                check_shrunk(self, fresh, ran.past_key_values, EXPANDED.get(turn.how, 1))
        self.fresh = len(visuals)
        lost = account(self, turn, visuals, visible) if turn.pictures else torch.zeros_like(visible)
        compact, changed = self.setting.positions == "compact", stages(self.setting.policy)[1]
        with Hiding(self.stock, self.seen, lost, visible, compact, fed, changed) as hiding:
            oracle = self._run(self.stock, turn, inputs, self.caches[1])
        compare(self, turn, ran, oracle, visible)
        self.seen.shift = hiding.shift
        self.caches = [ran.past_key_values, oracle.past_key_values]
        if turn.how == "forward":
            return True
        more = oracle.sequences.shape[1] - self.ids.shape[1]
        if turn.how not in EXPANDED:
            self.ids, self.types = oracle.sequences, pad(self.types, (0, more))
            self.mask, self.real = pad(self.mask, (0, more), value=1), pad(self.real, (0, more), value=1)
            self.seen = self.seen.longer(self.ids.shape[1])
        return turn.how not in EXPANDED

    def apply(self, setting: Setting) -> None:
        policies, _ = stages(setting.policy)
        policies = policies if len(policies) > 1 else policies[0]
        apply_pruning(
            self.pruned, policies, setting.keep, budget="final", positions=setting.positions, history=setting.history
        )
        self.setting = setting
        self.faithful &= isinstance(setting.keep, float) and setting.keep == 1.0 and setting.history is None

    def _crop(self, n: int) -> None:
        length = self.past - n
        part = torch.zeros_like(self.ids, dtype=torch.bool)
        part[:, length : self.past] = True
        pictures = torch.zeros_like(part)
        for row, columns, _, _ in self.visuals:
            pictures[row, columns] = True
        try:
            self.caches[0].crop(-n)
        except PrunedCacheError as error:
            if not ((pictures | (self.mask == 0)) & part).any() or not says(error, "crop"):
                raise
            self.refused.append("crop")
            return  # nothing was cropped, and the conversation goes on
        self.caches[1].crop(-n)
        self.ids, self.mask = self.ids[:, :length], self.mask[:, :length]
        self.types, self.real = self.types[:, :length], self.real[:, :length]
        self.seen = self.seen.until(length, self.mask.bool())
        cut = [(row, columns[columns < length], *rest) for row, columns, *rest in self.visuals]
        self.torn |= any(0 < len(new[1]) < len(old[1]) for new, old in zip(cut, self.visuals, strict=True))
        self.visuals = [visual for visual in cut if len(visual[1])]

    def _ends_in_picture(self) -> bool:
        ends = [int(row.nonzero()[-1]) if row.any() else -1 for row in self.mask]
        return any(ends[row] in columns.tolist() for row, columns, _, _ in self.visuals)

    # ------------------------------------------------------------ what the caller passes

    def _inputs(self, turn: Turn) -> tuple[dict[str, Any], list]:
        """Arguments of the call, and (row, columns, kind, grid) of its pictures; state takes in the new columns."""
        batch, start = self.batches[self.turn], self.ids.shape[1]
        new = {k: batch.inputs[k].clone() for k in ("input_ids", "attention_mask")}
        types = next((batch.inputs[k] for k in ("token_type_ids", "mm_token_type_ids") if k in batch.inputs), None)
        new["types"] = torch.zeros_like(new["input_ids"]) if types is None else types.long()
        padding = (new["attention_mask"] == 0).sum(1)
        if turn.right:
            order = torch.argsort(new["attention_mask"], dim=1, descending=True, stable=True)
            new = {k: v.gather(1, order) for k, v in new.items()}
        grids = {k: iter(batch.inputs.get(f"{k}_grid_thw", ())) for k in ("image", "video")}
        visuals = []
        for row, columns, kind in batch.visuals:
            columns = torch.tensor(columns) + start - (int(padding[row]) if turn.right else 0)
            visuals.append((row, columns, kind, next(grids[kind], None)))
        full = torch.cat([self.mask, new["attention_mask"]], 1)
        ends = [int(row.nonzero()[-1]) for row in new["attention_mask"]]
        for row, first, count in turn.hidden:
            first += 0 if turn.right else int(padding[row])
            full[row, start + first : start + min(first + count, ends[row])] = 0
        words = torch.ones_like(self.ids, dtype=torch.bool)
        for row, columns, _, _ in self.visuals:
            words[row, columns] = False
        for row, first, count in turn.forgotten:
            full[row, :start][words[row] & (torch.arange(start) >= first) & (torch.arange(start) < first + count)] = 0
        self.ids, self.mask = torch.cat([self.ids, new["input_ids"]], 1), full
        self.types = torch.cat([self.types, new["types"]], 1)
        self.real = torch.cat([self.real, new["attention_mask"]], 1)
        self.visuals += visuals
        since = self.past if turn.how == "forward" else 0
        inputs = dict(input_ids=self.ids[:, since:], attention_mask=full)
        inputs |= {k: v for k, v in batch.inputs.items() if k.startswith(("pixel", "image", "video"))}
        if "token_type_ids" in batch.inputs and (turn.types or turn.pictures):
            inputs["token_type_ids"] = self.types  # masks read them by absolute column
        if "mm_token_type_ids" in batch.inputs:
            inputs["mm_token_type_ids"] = self.types[:, since:]
        positions = self._positions(turn)
        if positions is not None:
            inputs["position_ids"] = positions[..., since:]
        return inputs, visuals

    def _positions(self, turn: Turn) -> Any:
        """Position ids that the caller passes, (..., B, T), or None."""
        order = (self.mask.cumsum(1) - 1).clamp(min=0)
        if not self.family.startswith("qwen"):
            first = int(self.family == "paligemma")
            return order + first if turn.how == "forward" and turn.numbered else None
        if self.turn == 0 and torch.equal(self.mask, self.real):
            return None
        grids: dict[str, list] = {"image": [], "video": []}
        for _, _, kind, grid in sorted(self.visuals, key=lambda v: (v[0], int(v[1][0]))):
            grids[kind].append(grid)
        planes, _ = self.stock.model.get_rope_index(
            self.ids,
            mm_token_type_ids=self.types,
            attention_mask=self.real,  # the stock model numbers whole pictures only, with text between them
            **{f"{kind}_grid_thw": torch.stack(some) for kind, some in grids.items() if some},
        )
        return torch.cat([order[None], planes])

    # ------------------------------------------------------------ both models

    def _run(self, model: Any, turn: Turn, inputs: dict[str, Any], cache: Any) -> Any:
        call = inputs if cache is None else {**inputs, "past_key_values": cache}
        torch.manual_seed(self.seed)
        with torch.no_grad():
            if turn.how == "forward":
                return model(**call, use_cache=True)
            how = {
                "sample": dict(do_sample=True, temperature=1.3, top_k=30),
                "copies": dict(do_sample=True, num_return_sequences=EXPANDED["copies"]),
                "beams": dict(num_beams=EXPANDED["beams"], num_return_sequences=2),
                "lookup": dict(prompt_lookup_num_tokens=3, eos_token_id=EOS),
            }.get(turn.how, {})
            return model.generate(
                **call, **{"do_sample": False, **how}, max_new_tokens=turn.steps, suppress_tokens=[IMAGE, VIDEO],
                use_cache=self.kind != "none", return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip

    def _run_pruned(self, turn: Turn, inputs: dict[str, Any]) -> tuple[Any, list[torch.Tensor]]:
        """A pruned call, and what each call of its text model was fed."""
        fed: list[torch.Tensor] = []
        first, spare = None, copy.deepcopy(self.caches[0]) if turn.fork else None
        if spare is not None:
            first = self._run(self.pruned, turn, inputs, self.caches[0])
            self.caches[0] = spare
        with listening(self.pruned, fed):
            ran = self._run(self.pruned, turn, inputs, self.caches[0])
        if first is not None:
            same = torch.equal if turn.how == "forward" else lambda a, b: all(map(torch.equal, a, b))
            assert same(first.logits, ran.logits), "a deep copy of the cache goes on otherwise than the cache itself"
        return ran, fed
