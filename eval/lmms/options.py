"""The pruning part of `--model_args`, shared by all our wrappers."""

from __future__ import annotations

import inspect
import logging
import sys
from dataclasses import dataclass, field
from typing import Any, get_args

from ... import __version__
from ...api import Positions, apply_pruning
from ...budget import Budget
from ...policies import Policy, make_policy

logger = logging.getLogger(__name__)

_POSITIONS = get_args(Positions)


@dataclass(frozen=True)
class PruningOptions:
    """How a wrapper's model is pruned.

    Attributes:
        policy: names joined by `+`, which composes stages, or `none` for the full model.
        keep: as of `apply_pruning`.
        positions: as of `apply_pruning`; None is its default.
        options: of the policy, where it is a single one.
    """

    policy: str = "none"
    keep: float | int | None = None
    positions: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def take(cls, arguments: dict[str, Any]) -> PruningOptions:
        """Takes `policy`, `keep`, `positions`, `policy_NAME` and `tokenprune_version` out of a wrapper's arguments.

        Raises:
            ValueError: for an unknown policy, option or position, or a bad budget; where the version is not
                the installed one; and where the harness's response cache is on and the version is not given.
        """
        _check_version(arguments.pop("tokenprune_version", None))
        policy = str(arguments.pop("policy", "none") or "none")
        keep, positions = arguments.pop("keep", None), arguments.pop("positions", None)
        names = [name for name in arguments if name.startswith("policy_")]
        taken = cls(policy, keep, positions, {name.removeprefix("policy_"): arguments.pop(name) for name in names})
        taken.check()
        return taken

    def check(self) -> None:
        if self.positions not in (None, *_POSITIONS):
            raise ValueError(f"positions={self.positions!r} is none of {', '.join(_POSITIONS)}")
        if self.policy == "none":
            given = [n for n in ("keep", "positions", "options") if getattr(self, n)]
            if given:
                raise ValueError(f"policy=none is the full model and takes no {' or '.join(given)}")
            return
        self.policies()
        if self.keep is not None:
            Budget(self.keep)

    def policies(self) -> list[Policy]:
        """The policies that are composed; none for the full model."""
        if self.policy == "none":
            return []
        names = self.policy.split("+")
        if self.options and len(names) > 1:
            raise ValueError(f"policy_{next(iter(self.options))}: options go with a single policy, not {self.policy!r}")
        return [make_policy(name, **self.options) for name in names]

    def apply(self, model: Any) -> None:
        """Prune the model, or leave it be where `policy=none`."""
        policies = self.policies()
        if policies:
            apply_pruning(model, policies, self.keep, positions=self.positions or "original")  # type: ignore[arg-type]

    def arguments(self) -> str:
        """These options as a part of `--model_args`, our version with them: all that answers depend on."""
        out = {"policy": self.policy, "keep": self.keep, "positions": self.positions}
        out |= {f"policy_{name}": value for name, value in self.options.items()}
        out["tokenprune_version"] = __version__
        return ",".join(f"{name}={value}" for name, value in out.items() if value is not None)


def _check_version(given: Any) -> None:
    # The harness keeps responses by its --model_args, to the letter, and knows nothing of our code.
    if given is not None and str(given) != __version__:
        raise ValueError(f"tokenprune_version={given} is asked for, {__version__} is installed")
    if given is None and any(a.split("=")[0] == "--use_cache" for a in sys.argv):
        raise ValueError(
            "--use_cache keeps responses by --model_args: add "
            f"tokenprune_version={__version__} to them, so that another version does not get this one's answers"
        )


def reject_unknown(arguments: dict[str, Any], accepted: Any) -> None:
    """Raises:
    ValueError: naming an argument that is none of a wrapper's.
    """
    if arguments:
        names = [n for n in inspect.signature(accepted).parameters if n not in ("self", "arguments", "kwargs")]
        names += ["policy", "keep", "positions", "policy_OPTION", "tokenprune_version"]
        raise ValueError(f"unknown model argument {next(iter(arguments))!r}; accepted: {', '.join(names)}")
