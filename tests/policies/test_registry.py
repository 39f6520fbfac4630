"""Policies by name: of this package, of a caller, of other packages."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import tokenprune
from tokenprune import (
    Policy,
    Selection,
    UnknownPolicyError,
    apply_pruning,
    list_policies,
    pruning,
    pruning_report,
    register,
    remove_pruning,
)
from tokenprune.plugins import use_builtin_only
from tokenprune.policies import DivPrune, Random, registry

from ..families import get_model, ragged_batch
from ..oracles import generate


def test_unknown_policy_lists_the_known_and_suggests():
    with pytest.raises(UnknownPolicyError, match=r"'divprun'.*Did you mean 'divprune'.*grid, .*random"):
        apply_pruning(get_model("llava"), "divprun")
    assert {"divprune", "random", "grid"} <= set(list_policies())


def test_a_custom_policy_instance_and_by_name():
    @dataclass
    class Loudest(Policy):
        """Largest norm times alpha."""

        alpha: float = 1.0

        def select(self, tokens, n_keep):
            return Selection((self.alpha * tokens.features.norm(dim=-1)).topk(n_keep).indices.sort().values)

    model = get_model("llava")
    with pruning(model, Loudest(alpha=2.0), keep=5):
        generate(model, ragged_batch("llava").inputs, steps=1)
        assert {r.n_after for r in pruning_report(model)} == {5}
    try:
        register("loudest")(Loudest)
        with pruning(model, ["loudest"], keep=5, alpha=3.0):
            pass
        with pytest.raises(ValueError, match="already registered"):
            register("loudest")(DivPrune)
    finally:
        tokenprune.policies.registration._REGISTRY.pop("loudest")
    with pytest.raises(TypeError, match="dataclass"):
        register("nothing")(int)
    assert "loudest" not in registry()


def test_policies_of_other_packages(plugins, monkeypatch, caplog):
    """Entry points are found by name; one that does not load is a warning, not an end."""
    good = EntryPoint("elsewhere", "tokenprune.policies.random:Elsewhere", "tokenprune.policies")
    bad = EntryPoint("broken", "no_such_package:Policy", "tokenprune.policies")
    monkeypatch.setattr("tokenprune.policies.random.Elsewhere", type("Elsewhere", (Random,), {}), raising=False)
    monkeypatch.setattr("tokenprune.policies.registration.entry_points", lambda group: [good, bad])
    try:
        assert "elsewhere" in list_policies()
        assert "broken" not in list_policies()
        assert "no_such_package" in caplog.text
        apply_pruning(get_model("llava"), "elsewhere", seed=4)
        remove_pruning(get_model("llava"))
        use_builtin_only()
        assert "elsewhere" not in list_policies()
    finally:
        tokenprune.policies.registration._REGISTRY.pop("elsewhere")
        tokenprune.policies.registration._INSTALLED.discard("elsewhere")


def test_every_policy_of_ours_says_what_it_keeps_and_where_it_comes_from():
    for name, cls in registry().items():
        assert cls.keeps and cls.paper, name


def test_every_policy_of_ours_has_a_file_of_tests():
    for cls in registry().values():
        package, _, name = cls.__module__.rpartition(".")
        assert package != "tokenprune.policies" or Path(__file__).with_name(f"test_{name}.py").exists(), name
