"""Former names of what policies declare or override work as before, with a warning that names the new ones."""

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
import torch

from tokenprune import Policy, Schedule, Selection, VisualTokens, apply_pruning, pruning, pruning_report
from tokenprune.policies import Auto, Downsample, FastV, PyramidDrop, make_policy, registry
from tokenprune.policies.base import check_policy
from tokenprune.policies.renamed import RENAMED
from tokenprune.policies.types import EncoderSpec, TowerCut

from .families import get_model, ragged_batch
from .oracles import assert_same, generate

CREATION = "policy class Mine uses former names"
USE = r"\.\w+ is deprecated: use \w+"
#: A definition of each former name, as a class body has it, and what reading it on an instance gives.
DEFINITIONS = {
    "deep_layers": lambda self, n_layers, lowest: [lowest],
    "deep_select": lambda self, view: ["mask", view],
    "deep_select_many": lambda self, views: [[view] for view in views],
    "deeper": lambda self: FastV(),
    "encoder": lambda self: EncoderSpec(keys="mean"),
    "places": staticmethod(lambda height, width, rows, columns: [height, width, rows, columns]),
    "resized": lambda self, height, width, n_keep: (height, n_keep),
    "tower_select": lambda self, view: TowerCut(view),
    "way": property(lambda self: 3.0),
}
ARGUMENTS = {
    "deep_layers": (8, 2),
    "deep_select": ("view",),
    "deep_select_many": (["a", "b"],),
    "deeper": (),
    "encoder": (),
    "places": (1, 2, 3, 4),
    "resized": (4, 5, 6),
    "tower_select": ("view",),
}
#: Our policies that define the new name, and arguments of which both must make the same.
OURS = {
    "deep_layers": (PyramidDrop(), (32, 1)),
    "deeper": (Auto(), ()),
    "encoder": (make_policy("visionzip"), ()),
    "places": (Downsample(), (4, 4, 2, 2)),
    "resized": (Downsample(), (4, 4, 5)),
}


def value(policy, name):
    found = getattr(policy, name)
    return found(*ARGUMENTS[name]) if name in ARGUMENTS else found


def former(*parents, **members):
    """A class with former names; the warning of its creation is expected."""
    with pytest.warns(DeprecationWarning, match=CREATION):
        return type("Mine", parents, members)


def silent(call):
    """The result of a call that must not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        return call()


def test_every_former_name_is_tested():
    assert DEFINITIONS.keys() == RENAMED.keys() == ARGUMENTS.keys() | {"way"}
    for old, new in RENAMED.items():
        assert old != new and hasattr(Policy, new)


@pytest.mark.parametrize("old", RENAMED)
@pytest.mark.parametrize("parent", [Policy, FastV, PyramidDrop, Auto, Downsample])
def test_a_class_with_a_former_name_acts_as_before(parent, old):
    new = RENAMED[old]
    with pytest.warns(DeprecationWarning, match=CREATION) as caught:
        cls = type("Mine", (parent,), {old: DEFINITIONS[old]})
    (warning,) = caught
    assert all(word in str(warning.message) for word in ("Mine", old, new))
    assert warning.filename == __file__
    policy = cls()
    plain = type("Plain", (), {old: DEFINITIONS[old]})()  # what the definition does
    found, expected = silent(lambda: getattr(policy, new)), getattr(plain, old)
    assert found == expected if old == "way" else found(*ARGUMENTS[old]) == expected(*ARGUMENTS[old])
    with pytest.warns(DeprecationWarning, match=rf"Mine\.{old} is deprecated: use {new}"):
        assert value(policy, old) == value(plain, old)


@pytest.mark.parametrize("old", RENAMED)
@pytest.mark.parametrize("name", sorted(registry()))
def test_a_former_name_can_be_read_on_every_policy(name, old):
    policy = make_policy(name)
    with pytest.warns(DeprecationWarning, match=rf"{type(policy).__name__}\.{old} is deprecated: use {RENAMED[old]}"):
        assert getattr(policy, old) == getattr(policy, RENAMED[old])
    with pytest.warns(DeprecationWarning, match=USE):
        assert getattr(type(policy), old) == getattr(type(policy), RENAMED[old])


@pytest.mark.parametrize("old", OURS)
def test_a_former_name_can_be_called_on_ours(old):
    policy, arguments = OURS[old]
    with pytest.warns(DeprecationWarning, match=USE):
        answer = getattr(policy, old)(*arguments)
    assert answer == getattr(policy, RENAMED[old])(*arguments) and answer


@pytest.mark.parametrize("old", [name for name in RENAMED if name not in ("places", "way")])
def test_super_by_the_former_name_reaches_the_parent(old):
    """Through several generations that use former or new names, each once."""
    new = RENAMED[old]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)

        def adding(letter, name):
            def method(self, *arguments):
                return [letter, *getattr(super(classes[letter], self), name)(*arguments)]

            return method

        classes = {}
        classes["a"] = type("A", (Policy,), {new: lambda self, *arguments: [*arguments]})
        classes["b"] = type("B", (classes["a"],), {old: adding("b", old)})
        classes["c"] = type("C", (classes["b"],), {})
        classes["d"] = type("D", (classes["c"],), {new: adding("d", new)})
        classes["e"] = type("E", (classes["d"],), {old: adding("e", old)})
        classes["f"] = type("F", (classes["e"],), {old: adding("f", new)})
        policy = classes["f"]()
        assert getattr(policy, new)(1) == getattr(policy, old)(1) == ["f", "e", "d", "b", 1]
        assert getattr(classes["b"], old)(policy, 1) == ["b", 1]


def test_super_of_a_property_and_of_a_static_method():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)

        class Twice(type(Auto().decoder_follow_up())):
            @property
            def way(self):
                return 2 * super().way

        class Shifted(Downsample):
            @staticmethod
            def places(height, width, rows, columns):
                return [i + 1 for i in super(Shifted, Shifted).places(height, width, rows, columns)]

    assert Twice(Schedule((0.2, 0.5))).budget_weight == 4
    parents = Downsample().source_indices(4, 4, 2, 2)
    assert Shifted().source_indices(4, 4, 2, 2) == [i + 1 for i in parents]


def test_a_plain_class_attribute():
    cls = former(Policy, way=2.5)
    assert cls.budget_weight == cls().budget_weight == cls().way == 2.5
    assert type("Child", (cls,), {})().budget_weight == 2.5


@pytest.mark.parametrize("default", [2.0, field(default=2.0)])
def test_a_dataclass_field(default):
    cls = dataclass(former(Policy, __annotations__={"way": float}, way=default))
    child = dataclass(type("Child", (cls,), {"__annotations__": {"more": int}, "more": 1}))
    assert cls().budget_weight == cls().way == child().budget_weight == 2
    for policy in (cls(way=5.0), replace(cls(), way=5.0), child(way=5.0)):
        assert policy.budget_weight == policy.way == 5
    assert cls(way=5.0) == cls(5.0) != cls() and "way=5.0" in repr(cls(way=5.0))


def test_a_class_with_several_former_names_warns_once():
    with pytest.warns(DeprecationWarning, match=CREATION) as caught:
        type("Mine", (Policy,), {old: DEFINITIONS[old] for old in ("deep_layers", "deep_select")})
    (warning,) = caught
    assert "deep_layers is now decoder_layers, deep_select is now decoder_select" in str(warning.message)


def test_a_class_with_both_names_does_not_warn():
    """It is written for older versions, too: the new name counts."""
    cls = silent(lambda: type("Mine", (Policy,), {"decoder_layers": lambda *_: [1], "deep_layers": lambda *_: [2]}))
    assert cls().decoder_layers(4, 1) == [1]
    with pytest.warns(DeprecationWarning, match=USE):
        assert cls().deep_layers(4, 1) == [1]


def test_new_names_and_children_do_not_warn():
    cls = former(Policy, encoder=DEFINITIONS["encoder"])
    child = silent(lambda: type("Child", (cls,), {}))
    assert silent(child().encoder_spec) == EncoderSpec(keys="mean")
    silent(lambda: type("New", (FastV,), {"decoder_layers": lambda *_: [1], "budget_weight": 2.0}))


def test_a_mixin_that_is_no_policy():
    class Mixin:
        def deep_layers(self, n_layers, lowest):
            return [n + 1 for n in super().deep_layers(n_layers, lowest)]

    cls = former(Mixin, FastV)
    assert cls(layer=2).decoder_layers(8, 1) == [3]
    assert silent(lambda: type("Child", (cls,), {}))().decoder_layers(8, 1) == [3]


def test_an_instance_can_be_given_a_former_name():
    policy = FastV()
    with pytest.warns(DeprecationWarning, match=USE):
        policy.deep_layers = lambda n_layers, lowest: [7]
    assert policy.decoder_layers(8, 1) == [7]
    with pytest.warns(DeprecationWarning, match=USE):
        del policy.deep_layers
    assert policy.decoder_layers(8, 1) == [2]


def test_an_abstract_method():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)

        class Base(Policy, ABC):
            @abstractmethod
            def deep_layers(self, n_layers, lowest): ...

        class Old(Base):
            def deep_layers(self, n_layers, lowest):
                return [1]

        class New(Base):
            def decoder_layers(self, n_layers, lowest):
                return [2]

    with pytest.raises(TypeError, match="abstract"):
        Base()
    assert Old().decoder_layers(8, 1) == [1] and New().decoder_layers(8, 1) == [2]


@pytest.mark.parametrize("slots", [False, True])
def test_a_model_prunes_with_a_policy_written_before(slots):
    """At two stages, and as the same policy with new names does."""
    with pytest.warns(DeprecationWarning, match="policy class Old uses former names"):

        @dataclass(slots=slots)
        class Old(Policy):
            stage: ClassVar = "vision, decoder"

            def encoder(self):
                return EncoderSpec(layer="last", rows="cls")

            def select(self, tokens, n_keep):
                return Selection(tokens.encoder_attention.topk(n_keep).indices.sort().values)

            def deep_layers(self, n_layers, lowest):
                return [max(lowest, 2)]

            def deep_select(self, view):
                return [torch.arange(len(columns)) % 2 == 0 for columns in view.visual]

    @dataclass
    class New(Policy):
        stage: ClassVar = "vision, decoder"
        encoder_spec = vars(Old)["encoder_spec"]
        select = vars(Old)["select"]
        decoder_layers = vars(Old)["decoder_layers"]
        decoder_select = vars(Old)["decoder_select"]

    check_policy(Old())
    model, batch = get_model("llava"), ragged_batch("llava")
    runs, indices = [], []
    for policy in (Old(), New()):
        with pruning(model, policy, 0.5):
            runs.append(generate(model, batch.inputs, steps=2))
            indices.append([(record.indices, record.deep_indices) for record in pruning_report(model)])
    assert indices[0] == indices[1] and all(deep == kept[::2] for kept, deep in indices[0])
    assert_same(*runs)


def test_a_policy_without_its_method_is_still_refused():
    with pytest.warns(DeprecationWarning, match=CREATION):

        class Mine(Policy):
            stage = "decoder"

            def deep_layers(self, n_layers, lowest):
                return [1]

    with pytest.raises(ValueError, match=r"'Mine' acts at the decoder stage and must define decoder_select\(\)"):
        apply_pruning(get_model("llava"), Mine(), 0.5)


def test_tokens_are_selected_by_a_policy_written_before():
    cls = former(Policy, way=2.0, select=lambda self, tokens, n_keep: Selection(torch.arange(n_keep)))
    assert cls().select(VisualTokens(torch.zeros(4, 2)), 2).indices.tolist() == [0, 1]


def test_schedules_know_the_former_name_of_kept():
    schedule = Schedule((0.25, 0.5))
    with pytest.warns(DeprecationWarning, match=r"Schedule\.kept"):
        assert schedule.left(0, 100, 25) == schedule.kept(0, 100, 25) == 50


def test_a_schedule_with_the_former_method():
    with pytest.warns(DeprecationWarning, match=r"Mine\.left is deprecated: define kept"):

        class Mine(Schedule):
            def left(self, cut, n, n_keep):
                return 7

    assert Mine((0.5,)).kept(0, 20, 5) == 7
    with pytest.warns(DeprecationWarning, match="call Schedule.kept"):
        assert Schedule((0.5,)).left(0, 20, 5) == 5


def test_an_option_that_hides_the_stages():
    @dataclass
    class Mine(Policy):
        stages: int = 3

        def select(self, tokens, n_keep):
            return Selection(torch.arange(n_keep))

    with pytest.raises(ValueError, match="an option or attribute 'stages'"):
        apply_pruning(get_model("llava"), Mine())


@pytest.mark.parametrize("name", ["UnknownPolicyError", "make_policy", "register", "registry", "select"])
def test_former_names_in_the_module_of_the_base_class(name):
    from tokenprune.policies import base, registration, run

    with pytest.warns(DeprecationWarning, match=f"base.{name} is deprecated"):
        found = getattr(base, name)
    assert found is (run.run_policy if name == "select" else getattr(registration, name))
