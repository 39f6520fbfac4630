"""Recipes: files that say how a model is to be pruned, and on what this was measured."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ._version import __version__
from .arguments import BUDGETS, POSITIONS, BudgetMeaning, Positions
from .policies import AtPixels, Policy, make_policy
from .schedule import Schedule

#: Version of the files that are written, and the only one that is read.
FORMAT = 1
_SUFFIX = ".json"
_SAMPLED, _VALUES = 32, 8  # parameters, and values of each, that a fingerprint reads
#: Of a config, what does not change what a model computes.
_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "_attn_implementation")
#: Packages whose versions a recipe names.
_PACKAGES = ("tokenprune", "transformers", "torch")


class RecipeWarning(UserWarning):
    """A recipe is applied to another model, or with other versions, than it was measured on."""


@dataclass(frozen=True)
class Recipe:
    """How a model is to be pruned, and what was measured.

    Attributes:
        policies: in the order in which they act.
        keep: as in `apply_pruning`; None: what an adaptive policy finds.
        budget: what `keep` counts.
        positions: of surviving tokens.
        model: `type` (`config.model_type`), `fingerprint` and `name` of the model that was measured.
        versions: of the packages that it was measured with.
        measured: all else that the file says, for people to read: certificate, cost and data.
    """

    policies: tuple[Policy, ...]
    keep: float | int | str | None
    budget: BudgetMeaning
    positions: Positions
    model: Mapping[str, str]
    versions: Mapping[str, str]
    measured: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Recipe:
        """A recipe of a file that `tokenprune tune` wrote.

        Raises:
            OSError: it cannot be read.
            ValueError: it is no recipe, or one of a later version of this package; a policy or an option does not
                exist.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)} is no recipe: it is no JSON ({error})") from None
        try:
            return cls._of(content)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"{os.fspath(path)} is no recipe that can be applied: {reason}") from error

    @classmethod
    def _of(cls, content: Any) -> Recipe:
        if not isinstance(content, dict) or "recipe" not in content:
            raise ValueError("`tokenprune tune` writes recipes, and marks them with the key recipe")
        if content["recipe"] != FORMAT:
            raise ValueError(f"it has format {content['recipe']!r}, and this version of tokenprune reads {FORMAT}")
        for name, accepted in (("budget", BUDGETS), ("positions", POSITIONS)):
            if content[name] not in accepted:
                raise ValueError(f"{name}={content[name]!r} is unknown; accepted: {', '.join(map(repr, accepted))}")
        own = ("recipe", "policies", "keep", "budget", "positions", "model", "versions")
        return cls(
            policies=tuple(_policy(each["name"], each["options"]) for each in content["policies"]),
            **{name: content[name] for name in own[2:]},
            measured={name: value for name, value in content.items() if name not in own},
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON. The file appears under its name only when it is complete."""
        content = {
            "recipe": FORMAT,
            "policies": [_written(policy) for policy in self.policies],
            "keep": self.keep,
            "budget": self.budget,
            "positions": self.positions,
            "model": dict(self.model),
            "versions": dict(self.versions),
            **self.measured,
        }
        partial = Path(path).with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)

    def differences(self, model: nn.Module) -> list[str]:
        """In what a model, and the versions that are installed, differ from what was measured; a sentence for each."""
        config: Any = model.config
        told = []
        if config.model_type != self.model["type"]:
            told.append(f"it was measured on model type {self.model['type']!r}, and this is {config.model_type!r}")
        elif fingerprint(model) != self.model["fingerprint"]:
            told.append(f"it was measured on {self.model['name']}, and this model has another config or other weights")
        return told + self.other_versions()

    def other_versions(self) -> list[str]:
        """Packages of which another version is installed than was measured; a sentence for each."""
        return [
            f"it was measured with {name} {self.versions[name]}, and {installed} is installed"
            for name, installed in versions().items()
            if self.versions.get(name, installed) != installed
        ]

    def warn(self, differences: Sequence[str]) -> None:
        """Warn of differences, if there are any: what is certified does not hold then."""
        if differences:
            message = (
                f"the recipe's certificate does not hold here: {'; '.join(differences)}. Run tokenprune tune again"
            )
            warnings.warn(message, RecipeWarning, stacklevel=3)


def recipe_of(policy: object) -> Recipe | None:
    """The recipe that is given in place of a policy: a `Recipe`, or the path of a `.json` file. None: it is none.

    Raises:
        OSError, ValueError: as `Recipe.read`.
    """
    if isinstance(policy, Recipe):
        return policy
    if isinstance(policy, os.PathLike) or (isinstance(policy, str) and policy.endswith(_SUFFIX)):
        return Recipe.read(policy)
    return None


def versions() -> dict[str, str]:
    """Versions of the packages that what a model answers depends on."""
    return {
        name: __version__ if name == "tokenprune" else importlib.metadata.version(name).partition("+")[0]
        for name in _PACKAGES
    }


def fingerprint(model: nn.Module) -> str:
    """A short hash of a model's config and of some of its weights, to the precision of bfloat16.

    It tells models of other sizes and other weights apart; the dtype and the device do not enter it. Two models that
    differ only in weights that it does not read have the same.
    """
    config: Any = model.config
    found = hashlib.sha256(json.dumps(_stable(config.to_dict()), sort_keys=True, default=str).encode())
    matrices = sorted(name for name, parameter in model.named_parameters() if parameter.ndim > 1)
    for name in matrices[:: max(1, len(matrices) // _SAMPLED)]:
        values = _some_values(model, name)
        found.update(values.to("cpu", torch.float32).bfloat16().view(torch.int16).numpy().tobytes())
    return found.hexdigest()[:16]


def _some_values(model: nn.Module, name: str) -> Tensor:
    """Some values of a parameter, which accelerate may have put on the disk; none of one that has no values."""
    folder, _, leaf = name.rpartition(".")
    module = model.get_submodule(folder)
    parameter = getattr(module, leaf)
    if parameter.device.type != "meta":
        return _spread(parameter)
    from accelerate.utils import align_module_device

    with align_module_device(module):
        parameter = getattr(module, leaf)
        return torch.empty(0) if parameter.device.type == "meta" else _spread(parameter).clone()


def _spread(parameter: Tensor) -> Tensor:
    flat = parameter.detach().reshape(-1)
    return flat[:: max(1, len(flat) // _VALUES)][:_VALUES]


def _stable(config: Any) -> Any:
    """A config without what does not change what a model computes, in all its parts."""
    if isinstance(config, dict):
        return {str(name): _stable(value) for name, value in config.items() if name not in _VOLATILE}
    return [_stable(each) for each in config] if isinstance(config, list | tuple) else config


def _written(policy: Policy) -> dict[str, Any]:
    """A policy as JSON values."""
    if isinstance(policy, AtPixels):
        return {"name": f"{policy.policy.name}@pixels", "options": _options(policy.policy)}
    return {"name": policy.name, "options": _options(policy)}


def _options(policy: Policy) -> dict[str, Any]:
    """All options of a policy as JSON values, so that defaults that change later do not change a recipe."""
    values = {each.name: getattr(policy, each.name) for each in dataclasses.fields(policy) if each.init}
    return {name: dataclasses.asdict(value) if isinstance(value, Schedule) else value for name, value in values.items()}


def _policy(name: str, options: Mapping[str, Any]) -> Policy:
    """The policy of a recipe."""
    read = {key: _schedule(value) if isinstance(value, dict) else value for key, value in options.items()}
    return make_policy(name, **read)


def _schedule(value: Mapping[str, Any]) -> Schedule:
    return Schedule(tuple(value["depths"]), None if value["counts"] is None else tuple(value["counts"]))
