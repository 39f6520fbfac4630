"""Whether a turn of a conversation went as it should: its report, its logits, or a refusal that is documented."""

from __future__ import annotations

import re
from typing import Any

import torch

from tokenprune import PrunedCacheError, pruning_report
from tokenprune.budget import Budget
from tokenprune.patches.cache import layout_of
from tokenprune.patches.kept_history import history_of

from ..families import FAMILIES, text_of
from ..oracles import Run, assert_same, keep_mask, native_short
from .hiding import held, listening
from .talks import EXPANDED, Turn, stages

#: Errors that are documented behaviour, and what they say; `refusal` tells when they may come.
REFUSALS = {
    "crop": (PrunedCacheError, "cannot crop a pruned cache into its pruned part"),
    "other cuts": (PrunedCacheError, "dropped tokens at decoder layer .*, and another is applied now"),
    "window": (PrunedCacheError, "a picture in a later turn is not supported on sliding-window layers"),
    "masks": (
        (ValueError, PrunedCacheError),
        r"pruning cannot (follow ready-made attention masks|shrink the masks).*default \(dynamic\) cache",
    ),
    "raster": (ValueError, "strategy='row' needs the raster of the image, which is unknown for this input"),
}


def refusal(talk: Any, turn: Turn, error: Exception) -> str | None:
    """Which of `REFUSALS` the error of a call is; None: none that may come here."""
    static, pictures = talk.kind == "static", turn.pictures
    sliding = "sliding_attention" in (getattr(talk.stock.config.get_text_config(), "layer_types", None) or ())
    blocks = bool(FAMILIES[talk.family].blocks)
    before = layout_of(talk.caches[0])
    removed = not talk.faithful and (pictures or not bool(talk.seen.layers.all()))
    may = {
        "other cuts": before is not None and list(before.by_decoder_layer) != _cuts(talk),
        "window": sliding and blocks and talk.turn > 0 and pictures,
        "masks": static and removed and (sliding or blocks),
        # A picture has none that is hidden in part, or has left tokens in the vision tower.
        "raster": pictures
        and (bool(turn.hidden) or any(p.stages == ("encoder",) for p in stages(talk.setting.policy)[0])),
    }
    return next((name for name, can in may.items() if can and says(error, name)), None)


def says(error: Exception, name: str) -> bool:
    kind, message = REFUSALS[name]
    return isinstance(error, kind) and re.search(message, str(error)) is not None


def _cuts(talk: Any) -> list[int]:
    """Decoder layers at which the policies that are applied may drop tokens."""
    layers = len(text_of(talk.stock).layers)
    lowest = len(getattr(talk.stock.config.vision_config, "deepstack_visual_indexes", ())) or 1
    policies, _ = stages(talk.setting.policy)
    if not isinstance(talk.setting.keep, list):
        policies += [more for p in policies if (more := p.decoder_follow_up()) is not None]
    return [layer for p in policies for layer in p.decoder_layers(layers, lowest)]


def account(talk: Any, turn: Turn, visuals: list, visible: torch.Tensor) -> torch.Tensor:
    """Read the report of a turn with pictures: note what each layer has lost.

    Args:
        talk: its `seen` is written.
        turn: the turn.
        visuals: (row, columns, kind, ...) of its pictures.
        visible: (B, T) bool, the caller's mask.

    Returns:
        (B, T) bool, what was dropped before the decoder.
    """
    copies = EXPANDED.get(turn.how, 1)
    rows: list[list] = [[] for _ in range(len(visible) * copies)]
    for record in pruning_report(talk.pruned):
        rows[record.sample].append(record)
    lost = torch.zeros_like(visible)
    for row in range(len(visible)):
        # A picture that is hidden as a whole has no record.
        own = [v for v in sorted(visuals, key=lambda v: int(v[1][0])) if v[0] == row and visible[row, v[1]].any()]
        of_copies = rows[row * copies : (row + 1) * copies]
        for records in of_copies:
            assert len(records) == len(own), f"{len(records)} records of {len(own)} pictures in row {row}"
            for record, (_, columns, kind, *_) in zip(records, own, strict=True):
                _read(talk, record, row, columns, kind, visible[row, columns], lost)
        assert all([r.cuts for r in records] == [r.cuts for r in of_copies[0]] for records in of_copies)
    assert not (talk.faithful and not talk.seen.layers[:, visible].all()), "keep=1.0 has dropped something"
    return lost


def forget(talk: Any, earlier: list, cache: Any, copies: int) -> None:
    """Note what is left of pictures of earlier turns, as the layout of the pruned cache says.

    Args:
        talk: its `seen` is written.
        earlier: (row, columns, ...) of these pictures.
        cache: of the pruned model, after the turn.
        copies: rows of it for each row of the talk.
    """
    layout = None if talk.setting.history is None else layout_of(cache)
    if layout is None:
        return
    parts = {0: layout, **layout.by_decoder_layer}
    for row, columns, *_ in earlier:
        for first, part in sorted(parts.items()):
            at = row * copies
            held = torch.zeros(talk.seen.layers.shape[2], dtype=torch.bool)
            held[part.columns[at][part.valid[at]]] = True
            talk.seen.layers[first:, row, columns] &= held[columns]


def check_shrunk(talk: Any, fresh: list, cache: Any, copies: int) -> None:
    """Check that no layer holds more of pictures than `history` leaves.

    Args:
        talk: with its setting.
        fresh: (row, columns, ...) of the pictures of the turn before.
        cache: of the pruned model, after the turn.
        copies: rows of it for each row of the talk.
    """
    layout, history = layout_of(cache), history_of(talk.setting.history)
    for row, columns, *_ in fresh:
        held = set(layout.columns[row * copies][layout.valid[row * copies]].tolist()) & set(columns.tolist())
        most = history.count(len(columns))
        assert len(held) <= most, f"{len(held)} tokens of an earlier picture are held, and history leaves {most}"


def _read(
    talk: Any, record: Any, row: int, columns: torch.Tensor, kind: str, visible: torch.Tensor, lost: torch.Tensor
) -> None:
    """Check one record against the N columns of its picture, and note what it says."""
    places = visible.nonzero()[:, 0].tolist()
    said = (record.kind, record.n_before, record.n_after)
    assert said == (kind, len(places), len(record.indices)), f"{said} of a {kind} with {len(places)} visible tokens"
    budget = _exact(talk)
    assert budget is None or record.n_after == budget.count(len(places)), f"{record.n_after} of {len(places)}"
    above = places
    for layer, indices in [(0, record.indices), *record.cuts]:
        assert indices == sorted(set(indices)) and set(indices) <= set(above), record
        stays = torch.zeros(len(columns), dtype=torch.bool)
        stays[indices] = True
        talk.seen.layers[layer:, row, columns] = stays | ~visible
        if layer == 0:
            lost[row, columns] = visible & ~stays
        above = indices


def _exact(talk: Any) -> Budget | None:
    """The budget of a policy that acts alone and meets it."""
    (one, *others), _ = stages(talk.setting.policy)
    alone = not others and one.stages == ("vision",) and one.exact and one.decoder_follow_up() is None
    return Budget(talk.setting.keep) if alone else None


def compare(talk: Any, turn: Turn, ran: Any, oracle: Any, visible: torch.Tensor) -> None:
    """Tokens are equal and logits close; where nothing may be dropped, equal to the bit."""
    tolerance = 0 if talk.faithful else 1e-5
    if turn.how != "forward":
        assert ran.sequences.tolist() == oracle.sequences.tolist(), "other tokens than the stock model's"
        _close(torch.stack(ran.logits), torch.stack(oracle.logits), tolerance)
    else:
        length = oracle.logits.shape[1]
        visible, keep = visible[:, -length:], talk.seen.layers[-1][:, -length:]
        some = held(keep, visible) if (visible & ~keep).any() else [torch.arange(length)] * len(visible)
        width, wanted = ran.logits.shape[1], max(map(len, some))
        assert width == wanted, f"logits of {width} columns instead of {wanted}"
        for row, columns in enumerate(some):
            real = visible[row, columns]
            _close(ran.logits[row, width - len(columns) :][real], oracle.logits[row, columns][real], tolerance)
    if talk.kind != "none":
        assert int(ran.past_key_values.get_seq_length()) == int(oracle.past_key_values.get_seq_length())


def _close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    assert ours.isfinite().all()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def hold_hybrid(talk: Any) -> None:
    """A single greedy turn, held against the native-short oracle."""
    (turn,), (batch,) = talk.turns, talk.batches
    steps = 1 if talk.kind == "none" else turn.steps  # it might generate a placeholder and be fed that
    fed: list[torch.Tensor] = []
    call = dict(batch.inputs, max_new_tokens=steps, do_sample=False, return_dict_in_generate=True, output_logits=True)
    call |= dict(use_cache=talk.kind != "none") | ({"cache_implementation": "static"} if talk.kind == "static" else {})
    with torch.no_grad(), listening(talk.pruned, fed):
        ran = talk.pruned.generate(**call)
        if talk.faithful:
            oracle = talk.stock.generate(**call)
            assert all(map(torch.equal, ran.logits, oracle.logits)), "keep=1.0 is not the stock model"
    run = Run(ran.sequences[:, batch.inputs["input_ids"].shape[1] :], torch.stack(ran.logits))
    keep, changed = keep_mask(batch, pruning_report(talk.pruned)), stages(turn.setting.policy)[1]
    short = native_short(talk.stock, batch, keep, turn.setting.positions, steps, fed=fed[0], changed=changed)
    assert_same(run, short, atol=5e-3)  # eight layers, most of which compute in float32
