"""Which policy and budget an engine prunes with, and which policies it cannot have."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from typing import Any

from ..budget import Budget
from ..patches.families.registry import family_by_type
from ..policies.base import Policy
from ..policies.registration import UnknownPolicyError, make_policy, registry
from ..policies.types import EncoderSpec
from ..validate import shortened, shown
from . import recipes

POLICY, KEEP, OPTIONS = "TOKENPRUNE_POLICY", "TOKENPRUNE_KEEP", "TOKENPRUNE_OPTIONS"
PER_FRAME = "TOKENPRUNE_PER_FRAME"
#: The path of a recipe of `tokenprune tune`, in place of policy, budget and options.
RECIPE = "TOKENPRUNE_RECIPE"
#: The same by `--hf-overrides`: an attribute of the checkpoint's config.
ATTRIBUTE = "tokenprune"


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
        keep: budget of a request that names none; None: what a policy finds that chooses by pixels.
        name, options: what `policy` was made of; they enter the hash of every image and video.
        per_frame: whether a video's budget is split over its frames, as Qwen3-VL's prompts need it; the policy may
            do so by itself.
    """

    policy: Policy
    keep: float | int | None
    name: str
    options: Mapping[str, Any]
    per_frame: bool

    @classmethod
    def of(cls, config: Any) -> Settings:
        """The settings for a checkpoint: those in its config (`--hf-overrides`), else the environment's, which may name
        a recipe.

        Raises:
            OSError: the recipe cannot be read.
            ValueError: for a missing policy, an unknown one, or options or a budget that are none; it names the
                variable or key.
            UnservablePolicyError: for a policy that the engine cannot have.
        """
        given, names = getattr(config, ATTRIBUTE, None), {key: f"--hf-overrides {ATTRIBUTE}.{key}" for key in _KEYS}
        if given is None:
            given, names = _environment(config), _VARIABLES
        elif not isinstance(given, Mapping) or not set(given) <= set(_KEYS):
            raise ValueError(f"{ATTRIBUTE}={shown(given)} is not understood; accepted keys: {', '.join(_KEYS)}")
        name = given.get("policy")
        if name is None or name == "":
            raise ValueError(
                f'no policy: set {POLICY}, or pass --hf-overrides \'{{"{ATTRIBUTE}": {{"policy": "divprune"}}}}\''
            )
        options = _options(given.get("options", {}), names["options"])
        per_frame = _flag(given.get("per_frame", False), names["per_frame"])
        policy = _policy(name, options, names)
        refuse(policy)
        keep = given.get("keep")
        if keep is None and not recipes.finds_count(policy):
            keep = family_by_type(config.model_type).default_keep
        keep = None if keep is None else _budget(keep, names["keep"])
        return cls(policy, keep, name, options, per_frame or policy.per_frame)


_VARIABLES = {"policy": POLICY, "keep": KEEP, "options": OPTIONS, "per_frame": PER_FRAME}
_KEYS = tuple(_VARIABLES)
_MOST_TOKENS = 2**53  # a budget travels as a float64


def _environment(config: Any) -> dict[str, Any]:
    """What is set of the variables, or what the recipe says that is; one that is empty is not."""
    given: dict[str, Any] = {key: os.environ[name] for key, name in _VARIABLES.items() if os.environ.get(name)}
    if path := os.environ.get(RECIPE):
        beside = [_VARIABLES[key] for key in given if key != "per_frame"]
        if beside:
            raise ValueError(f"{RECIPE}={path} brings its own {', '.join(beside)}; set one or the other")
        given |= recipes.read(path, config, RECIPE)
        if given["keep"] is None:
            del given["keep"]
        else:
            given["keep"] = str(given["keep"])
        given["options"] = json.dumps(given["options"])
    if "keep" in given:
        given["keep"] = parse_keep(given["keep"], KEEP)
    for key, example in (("options", '{"seed": 1}'), ("per_frame", "1")):
        if key in given:
            given[key] = _parsed(given[key], _VARIABLES[key], example)
    return given


def _parsed(text: str, name: str, example: str) -> Any:
    """JSON with finite numbers, and no key twice in an object."""
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_finite, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}={shortened(text)} cannot be read as JSON ({error}); for example: {example}") from None


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{shortened(text)} is no finite number")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {shown(twice)} is there twice")
    return found


def _written(value: Any) -> str:
    """A value as it is written in JSON, shortened."""
    try:
        return shortened(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        return shown(value)


def parse_keep(text: str, name: str) -> float | int:
    """A budget as written: `1` is one token, `1.0` all of them."""
    return _budget(_parsed(text, name, "0.25"), name)


def _budget(keep: Any, name: str) -> float | int:
    wanted = f"accepted: a keep ratio in (0, 1] as 0.25, or a number of tokens from 1 to {_MOST_TOKENS} as 64"
    try:
        found = Budget(keep).keep
    except (ValueError, OverflowError):
        raise ValueError(f"{name}={_written(keep)} is no budget; {wanted}") from None
    if found > _MOST_TOKENS:
        raise ValueError(f"{name}={_written(keep)} is too large; {wanted}")
    return found


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, int) or value not in (0, 1):
        raise ValueError(f"{name}={_written(value)} is no yes or no; accepted: true, false, 1, 0")
    return bool(value)


def _options(options: Any, name: str) -> dict[str, Any]:
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        raise ValueError(f'{name}={_written(options)} is no JSON object; accepted: options by name, as {{"seed": 1}}')
    return dict(options)


def _policy(policy: Any, options: dict[str, Any], names: Mapping[str, str]) -> Policy:
    """The policy; an error says where its name or its options were read."""
    if not isinstance(policy, str):
        raise ValueError(f"{names['policy']}={_written(policy)} is no name; accepted: {', '.join(registry())}")
    try:
        return make_policy(policy, **options)
    except UnknownPolicyError as error:
        raise UnknownPolicyError(f"{names['policy']}: {error}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{names['options']}={_written(options)} does not fit: {error}") from error


def refuse(policy: Policy) -> None:
    """Raise for what no engine that sizes its cache beforehand can do."""
    name = policy.name or type(policy).__name__
    if "encoder" in policy.stages:
        raise UnservablePolicyError(name, "vision tower", "acts inside the vision tower, which is the engine's own")
    if "decoder" in policy.stages:
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


def check_encoder(policy: Policy, readable: EncoderSpec | None, reads_pixels: bool = False) -> None:
    """Raise unless what a policy reads of the vision encoder can be read of a model's tower.

    Args:
        policy: already accepted by `Settings.of`.
        readable: what can be read of the tower; None: nothing.
        reads_pixels: whether policies that choose by pixels are asked.

    Raises:
        UnservablePolicyError: naming what is missing.
    """
    spec, name = policy.encoder_spec(), policy.name
    if "pixels" in policy.stages:
        if not reads_pixels:
            raise UnservablePolicyError(name, "vision tower", "acts before the vision tower, which is the engine's own")
        if policy.pixel_features != "raw":
            why = "reads the tower's embeddings of patches, and prompts are written before the tower runs"
            raise UnservablePolicyError(name, "embedded patches", why)
    if spec is not None and spec.entropy:
        raise UnservablePolicyError(name, "pixels", "reads the pixels of pictures, which are not handed on here")
    if spec is None or (spec.rows is None and spec.keys is None):
        return
    if readable is None or (readable.rows is None and readable.keys is None):
        if readable is None and spec.keys is None and spec.rows == "cls" and spec.without_cls is None:
            return  # it does without
        raise UnservablePolicyError(
            name, "tower's attention", "reads attention of the vision tower, which is not heard on this model here"
        )
    if spec.layer != readable.layer:
        raise UnservablePolicyError(
            name,
            "tower's last layer",
            "reads the vision tower's last layer, which the engine does not build: its tower ends with the layer "
            "that the projector reads",
        )
    if spec.joined_heads or spec.keys not in (None, readable.keys):
        raise UnservablePolicyError(name, "joined heads", "reads all heads joined, which are spread over ranks here")
