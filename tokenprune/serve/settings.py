"""Which policy and budget an engine prunes with, and which policies it cannot have."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from ..budget import Budget
from ..patches.base import family_by_type
from ..policies.base import Policy, make_policy, registry
from ..visual import EncoderSpec

POLICY, KEEP, OPTIONS = "TOKENPRUNE_POLICY", "TOKENPRUNE_KEEP", "TOKENPRUNE_OPTIONS"
PER_FRAME = "TOKENPRUNE_PER_FRAME"
#: The same by `--hf-overrides`: an attribute of the checkpoint's config.
ATTRIBUTE = "tokenprune"


#: What a CLIP or SigLIP tower inside the engine lets be heard; a Qwen tower nothing.
CLIP = EncoderSpec(layer="feature", keys="mean", features=True)


class UnservablePolicyError(ValueError):
    """The policy cannot be had inside the engine.

    Attributes:
        short: why, in a few words.
    """

    def __init__(self, policy: str, short: str, why: str):
        super().__init__(f"policy {policy!r} {why}; serve one of the vision stage, as divprune, cdpruner or auto")
        self.short = short


@dataclasses.dataclass(frozen=True)
class Settings:
    """What an engine prunes with.

    Attributes:
        policy: a vision-stage policy whose count is known beforehand.
        keep: budget of a request that names none.
        name, options: what `policy` was made of; they enter the hash of every image and video.
    """

    policy: Policy
    keep: float | int
    name: str
    options: Mapping[str, Any]

    @property
    def per_frame(self) -> bool:
        """Whether a video's budget is spread over its frames, as Qwen3-VL's prompts need it."""
        return self.policy.per_frame

    @classmethod
    def of(cls, config: Any) -> Settings:
        """The settings for a checkpoint: those in its config (`--hf-overrides`), else the environment's.

        Raises:
            ValueError: for a missing policy, an unknown one, or options or a budget out of range.
            UnservablePolicyError: for a policy that the engine cannot have.
        """
        given = getattr(config, ATTRIBUTE, None)
        if given is None:
            given = _environment()
        elif not isinstance(given, Mapping) or not set(given) <= set(_KEYS):
            raise ValueError(f"{ATTRIBUTE}={given!r} is not understood; accepted keys: {', '.join(_KEYS)}")
        name, options = given.get("policy"), given.get("options") or {}
        if not name:
            raise ValueError(
                f'no policy: set {POLICY}, or pass --hf-overrides \'{{"{ATTRIBUTE}": {{"policy": "divprune"}}}}\''
            )
        keep = given.get("keep")
        if keep is None:
            keep = family_by_type(config.model_type).default_keep
        policy = make_policy(name, **options)
        _refuse(policy)
        if given.get("per_frame"):
            policy.per_frame = True  # type: ignore[misc]
        return cls(policy, Budget(keep).keep, name, dict(options))


_KEYS = ("policy", "keep", "options", "per_frame")


def _environment() -> dict[str, Any]:
    keep, options = os.environ.get(KEEP), os.environ.get(OPTIONS)
    return {
        "policy": os.environ.get(POLICY),
        "keep": None if not keep else parse_keep(keep, KEEP),
        "options": None if not options else _parsed(options, OPTIONS, '{"seed": 1}'),
        "per_frame": bool(_parsed(os.environ.get(PER_FRAME) or "0", PER_FRAME, "1")),
    }


def _parsed(text: str, name: str, example: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}={text!r} is no JSON ({error}); for example: {example}") from None


def parse_keep(text: str, name: str) -> float | int:
    """A budget as written: `1` is one token, `1.0` all of them."""
    value = _parsed(text, name, "0.25")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name}={text!r} is no number; accepted: a keep ratio as 0.25, or a number of tokens as 64")
    return value


def _refuse(policy: Policy) -> None:
    """Raise for what no engine that sizes its cache beforehand can do."""
    name = policy.name or type(policy).__name__
    if "encoder" in policy.stage:
        raise UnservablePolicyError(name, "vision tower", "acts inside the vision tower, which is the engine's own")
    if "decoder" in policy.stage:
        off = " (its option removal=False leaves the vision stage)" if hasattr(policy, "removal") else ""
        raise UnservablePolicyError(
            name,
            "with `removal=False`" if off else "decoder",
            f"removes tokens inside the decoder, and a paged KV cache has the same tokens in all layers{off}",
        )
    if not policy.exact:
        raise UnservablePolicyError(
            name,
            "count not known beforehand",
            "keeps a number that is known only after it has chosen, and the engine wants it before the tower runs",
        )


def check_encoder(policy: Policy, heard: EncoderSpec | None) -> None:
    """Raise unless what a policy wants of the vision encoder is among what a model's tower lets be heard.

    Args:
        policy: already accepted by `Settings.of`.
        heard: of the tower; None: nothing.

    Raises:
        UnservablePolicyError: naming what is missing.
    """
    spec, name = policy.encoder(), policy.name
    if spec is None or (spec.rows is None and spec.keys is None):
        return
    if heard is None:
        if spec.keys is None and spec.rows == "cls" and spec.without_cls is None:
            return  # it does without
        raise UnservablePolicyError(
            name, "tower's attention", "reads attention of the vision tower, which is not heard on this model here"
        )
    if spec.layer != heard.layer:
        raise UnservablePolicyError(
            name,
            "tower's last layer",
            "reads the vision tower's last layer, which the engine does not build: its tower ends with the layer "
            "that the projector reads",
        )
    if spec.joined_heads or spec.keys not in (None, heard.keys):
        raise UnservablePolicyError(name, "joined heads", "reads all heads joined, which are spread over ranks here")


def table() -> str:
    """Markdown: which policies are served on which models, and why others are not."""
    lines = ["| policy | LLaVA-1.5 | Qwen2.5-VL, Qwen3-VL |", "|---|---|---|"]
    for name in registry():
        cells = [_cell(name, heard) for heard in (CLIP, None)]
        lines.append(f"| `{name}` | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def _cell(name: str, heard: EncoderSpec | None) -> str:
    policy = make_policy(name)
    try:
        _refuse(policy)
        check_encoder(policy, heard)
    except UnservablePolicyError as error:
        return error.short
    return "served, by prompt" if "text" in policy.needs else "served"
