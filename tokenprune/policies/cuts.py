"""The decoder layers before which a policy drops tokens, checked."""

from __future__ import annotations

from ..mean_budget import DecoderCuts
from .base import Policy


def planned_cuts(policy: Policy, n_layers: int, lowest: int) -> DecoderCuts:
    """The layers before which a policy wants to drop tokens, and how many it plans to leave there.

    Args:
        policy: acts at the decoder stage.
        n_layers: decoder layers of the model.
        lowest: lowest layer before which the model lets tokens be dropped.

    Raises:
        ValueError: what the policy names is not as it should be, or not what the model accepts.
    """
    answer = policy.decoder_layers(n_layers, lowest)
    if not isinstance(answer, list | tuple) or not all(isinstance(i, int) and not isinstance(i, bool) for i in answer):
        raise ValueError(f"policy {policy.label!r} must name its decoder layers as a list of int, got {answer!r}")
    cuts = list(answer)
    if not cuts or cuts != sorted(set(cuts)):
        raise ValueError(
            f"policy {policy.label!r} must name one decoder layer or more, ascending (decoder_layers), got {cuts}"
        )
    for layer in cuts:
        if not lowest <= layer < n_layers:
            raise ValueError(
                f"policy {policy!r} wants to drop tokens before decoder layer {layer}; this model accepts "
                f"{lowest} to {n_layers - 1}"
            )
    planned = policy.decoder_counts(100, 50.0, n_layers, lowest)
    if (
        not isinstance(planned, list | tuple)
        or len(planned) != len(cuts)
        or not all(isinstance(count, int | float) and count >= 0 for count in planned)
    ):
        raise ValueError(
            f"policy {policy.label!r} must name a number >= 0 for each of its {len(cuts)} cuts (decoder_counts), got "
            f"{planned!r}"
        )
    counts = lambda entered, n_keep: policy.decoder_counts(entered, n_keep, n_layers, lowest)
    return DecoderCuts(n_layers, tuple(cuts), counts, policy.decoder_entry)
