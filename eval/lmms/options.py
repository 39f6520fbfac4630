"""The pruning part of the harness's `--model_args`, shared by all our wrappers."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from ... import __version__
from ..setting import POSITIONS, PruningSetting

#: The value of `policy` for the full model.
NO_POLICY = "none"


def take_pruning(arguments: dict[str, Any]) -> PruningSetting:
    """Take `policy`, `keep`, `positions`, `policy_OPTION` and `tokenprune_version` out of a wrapper's arguments.

    The policy may have its options in its name, as `fastv:layer=3`; a name with commas is in quotes.

    Raises:
        ValueError: an unknown policy, option or positions, or a bad keep ratio; `policy=none` with any of them; a
            version that is not the installed one; no version while the harness's response cache is on.
    """
    _check_version(arguments.pop("tokenprune_version", None))
    policy = str(arguments.pop("policy", NO_POLICY) or NO_POLICY)
    keep, positions = arguments.pop("keep", None), arguments.pop("positions", None)
    names = [name for name in arguments if name.startswith("policy_")]
    options = {name.removeprefix("policy_"): arguments.pop(name) for name in names}
    if positions not in (None, *POSITIONS):
        raise ValueError(f"positions={positions!r} is none of {', '.join(POSITIONS)}")
    if policy == NO_POLICY:
        given = [name for name, value in (("keep", keep), ("positions", positions), ("options", options)) if value]
        if given:
            raise ValueError(f"policy={NO_POLICY} is the full model and takes no {' or '.join(given)}")
        return PruningSetting()
    return PruningSetting(_unquoted(policy), keep, positions or "original", options)


def model_args(setting: PruningSetting) -> str:
    """A setting as a part of `--model_args`, with our version: everything that answers depend on.

    Raises:
        ValueError: the policy is given as an instance, whose options its name does not tell.
    """
    if not isinstance(setting.policy, str | None):
        raise ValueError(f"policy={setting.policy!r}: --model_args take policies by name")
    given: dict[str, Any] = {"policy": NO_POLICY}
    if not setting.is_full:
        policy = setting.policy if setting.options else _quoted(setting.name)
        given = {"policy": policy, "keep": setting.keep, "positions": setting.positions}
        given |= {f"policy_{name}": value for name, value in setting.options.items()}
    given["tokenprune_version"] = __version__
    return ",".join(f"{name}={value}" for name, value in given.items() if value is not None)


def _quoted(policy: str) -> str:
    """A policy as a value of `--model_args`, which the harness splits at commas outside quotes."""
    quote = "'" if '"' in policy else '"'
    return f"{quote}{policy}{quote}" if "," in policy else policy


def _unquoted(policy: str) -> str:
    """The inverse of `_quoted`: the harness leaves the quotes where they are."""
    quoted = len(policy) > 1 and policy[0] == policy[-1] and policy[0] in "'\""
    return policy[1:-1] if quoted else policy


def _check_version(given: Any) -> None:
    # The response cache of the harness identifies responses by --model_args, which say nothing of our code.
    if given is not None and str(given) != __version__:
        raise ValueError(f"tokenprune_version={given} is asked for, {__version__} is installed")
    if given is None and any(a.split("=")[0] == "--use_cache" for a in sys.argv):
        raise ValueError(
            "--use_cache keeps responses by --model_args: add "
            f"tokenprune_version={__version__} to them, so that another version does not get this one's answers"
        )


def reject_unknown(arguments: dict[str, Any], accepted: Callable[..., Any]) -> None:
    """Check that a wrapper's arguments, without those of pruning, are parameters of `accepted`.

    Raises:
        ValueError: naming an argument that is not.
    """
    names = list(inspect.signature(accepted).parameters)
    unknown = [name for name in arguments if name not in names]
    if unknown:
        names += ["policy", "keep", "positions", "policy_OPTION", "tokenprune_version"]
        raise ValueError(f"unknown model argument {unknown[0]!r}; accepted: {', '.join(names)}")
