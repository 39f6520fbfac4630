"""Options of policies are checked when the policy is made, and the error names the option."""

import dataclasses
import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tokenprune import Schedule
from tokenprune.policies import make_policy, registry
from tokenprune.validate import boolean, choice, instance, real, reals, seed, whole

OURS = {name: cls for name, cls in registry().items() if cls.__module__.startswith("tokenprune.")}
FIELDS = [(name, field.name) for name, cls in OURS.items() for field in dataclasses.fields(cls)]
KINDS = {(name, field.name): field.type for name, cls in OURS.items() for field in dataclasses.fields(cls)}

BAD = {
    "string": "x",
    "None": None,
    "NaN": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "object": object(),
    "below zero": -1,
    "true": True,
    "bytes": b"1",
    "digits": "1",
    "complex": 1j,
    "list of strings": ["x"],
    "list of None": [None],
    "list of NaN": [math.nan],
    "list of bools": [True],
    "dictionary": {0.5: 1},
    "tensor": torch.tensor([0.5, 0.2]),
    "array without dimensions": np.array(0.5),
    "array": np.array(["x", "y"]),
    "beyond floats and indices": 10**400,
    "beyond decimal notation": 10**5000,
    "NumPy NaN": np.float32("nan"),
    "NumPy bool": np.True_,
}
#: What is bad elsewhere and means something here.
GOOD = {("fastvid", "threshold"): {"below zero"}}  # a cosine: no cut at all
GOOD_BOOLS = {"true", "NumPy bool"}


def test_there_are_policies_to_test():
    assert len(OURS) == 28
    assert len(FIELDS) > 50


@pytest.mark.parametrize(("policy", "option"), FIELDS)
def test_bad_values_are_named_when_the_policy_is_made(policy, option):
    for what, value in BAD.items():
        if what in GOOD.get((policy, option), GOOD_BOOLS if KINDS[policy, option] == "bool" else ()):
            assert getattr(OURS[policy](**{option: value}), option) == value
            continue
        with pytest.raises(ValueError, match=rf"^{option}=.+ (must be|is unknown; accepted:) "):
            OURS[policy](**{option: value})


def test_bad_values_are_named_when_the_policy_is_made_by_its_name():
    with pytest.raises(ValueError, match=r"^seed='x' must be a whole number >= 0$"):
        make_policy("random", seed="x")


@pytest.mark.parametrize(("policy", "option"), [each for each in FIELDS if KINDS[each] == "int"])
@pytest.mark.parametrize("value", [2.0, np.float64(2), 2.5, Fraction(5, 2)])
def test_a_whole_number_is_no_float(policy, option, value):
    with pytest.raises(ValueError, match=rf"^{option}=.* must be a whole number >= \d"):
        OURS[policy](**{option: value})


@pytest.mark.parametrize(("policy", "option"), [each for each in FIELDS if KINDS[each] == "bool"])
@pytest.mark.parametrize("value", [0, 1, "false", []])
def test_a_bool_is_no_number(policy, option, value):
    with pytest.raises(ValueError, match=rf"^{option}=.* must be True or False"):
        OURS[policy](**{option: value})


@pytest.mark.parametrize(
    ("policy", "option", "value"),
    [
        ("auto", "asked", 1.01),
        ("auto", "words", 0),
        ("auto", "diverse", 0),
        ("auto", "diverse", 1.01),
        ("auto", "length", 1.01),
        ("auto", "depths", (0.5, 0.25)),
        ("auto", "depths", (0.5, 0.5)),
        ("auto", "depths", (0.0,)),
        ("auto", "depths", (1,)),
        ("auto", "depths", 0.5),
        ("auto", "depths", "0.5"),
        ("auto", "depths", {0.5}),
        ("dart", "layer", 0),
        ("dart", "pivots", 0),
        ("eadp", "temperature", 0),
        ("eadp", "sharpness", 0),
        ("eadp", "words", 0),
        ("eadp", "words", 1.01),
        ("eadp", "alpha", 1.01),
        ("fastv", "layer", 0),
        ("fastvid", "segments", 0),
        ("fastvid", "threshold", 1.01),
        ("fastvid", "threshold", -1.01),
        ("fastvid", "merged", 1.01),
        ("fastvid", "every", 0),
        ("fastvid", "neighbours", 0),
        ("fastvid", "anchor", 1.01),
        ("flowcut", "every", 0),
        ("flowcut", "momentum", 1),
        ("fopru", "strategy", "Rank"),
        ("fopru", "strategy", ["rank"]),
        ("holov", "parts", 0),
        ("mmtok", "text_temperature", 0),
        ("mmtok", "vision_temperature", 0),
        ("pyramiddrop", "schedule", (0.25, 0.5)),
        ("pyramiddrop", "schedule", {"depths": [0.25]}),
        ("recoverable", "neighbours", 0),
        ("recoverable", "merge_neighbours", 0),
        ("random", "seed", 2**64),
        ("sparsevlm", "schedule", (0.25, 0.5)),
        ("todre", "depths", ()),
        ("todre", "depths", (0.5, 1.0)),
        ("todre", "seed", 2**64),
        ("vidcom2", "sharpness", 0),
        ("vidcom2", "channels", 0),
        ("vidcom2", "channels", 1.01),
        ("visionzip", "contextual", 1),
        ("vispruner", "important", 1.01),
        ("vispruner", "step", 0),
        ("vtw", "depth", 0),
        ("vtw", "depth", 1),
    ],
)
def test_values_out_of_range(policy, option, value):
    with pytest.raises(ValueError, match=f"^{option}="):
        OURS[policy](**{option: value})


@pytest.mark.parametrize(
    ("policy", "option", "value", "found"),
    [
        ("auto", "asked", 0, 0),
        ("auto", "asked", np.float64(1), 1.0),
        ("auto", "words", np.int64(3), 3),
        ("auto", "depths", [0.2, 0.4], (0.2, 0.4)),
        ("auto", "depths", np.array([0.25, 0.5]), (0.25, 0.5)),
        ("auto", "depths", [], ()),
        ("cdpruner", "weight", 0, 0),
        ("cdpruner", "weight", Fraction(1, 2), 0.5),
        ("fastvid", "threshold", -1, -1),
        ("flowcut", "momentum", 0, 0),
        ("fopru", "include_cls_query", np.False_, False),
        ("fopru", "strategy", np.str_("row"), "row"),
        ("prumerge_plus", "cluster", 0, 0),
        ("random", "seed", 2**64 - 1, 2**64 - 1),
        ("todre", "depths", [0.75, 0.5], (0.75, 0.5)),
        ("todre", "tau", 2, 2),
        ("todre", "seed", np.uint64(2**64 - 1), 2**64 - 1),
        ("visionzip", "contextual", 0, 0),
        ("vispruner", "important", 1, 1),
    ],
)
def test_values_in_range_are_kept_as_plain_python(policy, option, value, found):
    kept = getattr(OURS[policy](**{option: value}), option)
    assert kept == found
    assert type(kept) is type(found)


@pytest.mark.parametrize("name", OURS)
def test_defaults_are_accepted_as_they_are(name):
    policy = OURS[name]()
    for field in dataclasses.fields(policy):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        assert getattr(policy, field.name) == default
    assert dataclasses.replace(policy) == policy


@pytest.mark.parametrize("counts", [3, "3", (3, math.nan), (3, True), (3, None), (3, 0), (1, 3), (3,), {3: 1}, (3, -1)])
def test_counts_of_a_schedule(counts):
    with pytest.raises(ValueError, match=r"^counts="):
        Schedule((0.2, 0.5), counts)


@pytest.mark.parametrize(
    "depths", [0.5, "0.5", None, (None,), (math.nan,), (True,), ("0.5",), {0.5: 1}, (0.2, math.nan)]
)
def test_depths_of_a_schedule(depths):
    with pytest.raises(ValueError, match=r"^depths=.*shares of the layers, in \(0, 1\), ascending"):
        Schedule(depths)


def test_a_schedule_from_lists():
    assert Schedule([0.2, np.float64(0.5)], [3, 3]) == Schedule((0.2, 0.5), (3, 3))


# ---------------------------------------------------------------- the checks themselves


def _made(check, value, *rest, **range_):
    owner = SimpleNamespace(x=value)
    check(owner, "x", *rest, **range_)
    return owner.x


def _refused(check, value, *rest, **range_):
    with pytest.raises(ValueError, match=r"^x=") as error:
        _made(check, value, *rest, **range_)
    return str(error.value)


def test_whole():
    assert _made(whole, 0) == 0
    assert _made(whole, 2**63 - 1) == 2**63 - 1
    assert _made(whole, 3, least=3, most=3) == 3
    assert type(_made(whole, np.int8(7))) is int
    assert _refused(whole, -1) == "x=-1 must be a whole number >= 0"
    assert _refused(whole, 4, most=3) == "x=4 must be a whole number >= 0, at most 3"
    assert _refused(whole, 2**63).endswith(", at most 9223372036854775807")
    assert _refused(whole, 10**5000).startswith("x=<int> must be a whole number")  # it cannot be written
    assert _made(seed, 2**64 - 1) == 2**64 - 1
    torch.Generator().manual_seed(2**64 - 1)  # which is why
    assert "at most 18446744073709551615" in _refused(seed, 2**64)


@pytest.mark.parametrize(
    ("range_", "inside", "outside", "says"),
    [
        ({}, [-1e30, 0, -0.0, 1e-30, 1e30], [], "a number"),
        ({"least": 0}, [0, 10**30], [-1e-30], "a number >= 0"),
        ({"above": 0}, [1e-30], [0, -0.0, Fraction(1, 10**400)], "a number > 0"),
        ({"most": 1}, [-9, 1], [1.0000000000000002], "a number <= 1"),
        ({"below": 1}, [0.9999999999999999], [1, Fraction(10**30 - 1, 10**30)], "a number < 1"),
        ({"least": 0, "most": 1}, [0, 1, np.float16(0.5)], [-1e-30, 1.0000000000000002], "a number, in [0, 1]"),
        ({"least": 0, "below": 1}, [0, 0.5], [1], "a number, in [0, 1)"),
        ({"above": 0, "most": 1}, [1], [0], "a number, in (0, 1]"),
        ({"above": 0, "below": 1, "what": "a share"}, [0.5], [0, 1], "a share, in (0, 1)"),
    ],
)
def test_real(range_, inside, outside, says):
    for value in inside:
        assert _made(real, value, **range_) == value
    for value in [*outside, None, "0.5", True, np.True_, 0.5j]:
        assert _refused(real, value, **range_).endswith(f" must be {says}")
    for value in (math.nan, math.inf, np.float64("-inf"), 10**400, 1.1e30, 0.9e-30, -5e-324, np.float64(1e-200)):
        assert _refused(real, value, **range_).endswith(f"{says}; finite, and unless 0 of a size from 1e-30 to 1e+30")


def test_reals():
    assert _made(reals, range(3)) == (0, 1, 2)
    assert _made(reals, (each for each in (1, 2)), ascending=True) == (1, 2)
    assert _made(reals, [3, 3, 1], descending=True) == (3, 3, 1)
    assert _made(reals, [], empty=True) == ()
    assert _refused(reals, []) == "x=[] must be a tuple or list of numbers, at least one"
    assert "none larger than the one before it" in _refused(reals, [1, 3], descending=True)
    assert ", ascending" in _refused(reals, [1, 1], ascending=True)
    assert "in (0, 1)" in _refused(reals, [0.5, 1], above=0, below=1)
    assert "of a size from" in _refused(reals, [0.5, 1e31])
    for value in (1, "12", b"12", {1: 2}, {1, 2}, None, [[1]], [None], np.array(1.0), np.ones((2, 2))):
        _refused(reals, value, empty=True)


def test_choice_boolean_instance():
    assert _made(choice, "a", ("a", "b")) == "a"
    assert _refused(choice, "c", ("a", "b")) == "x='c' is unknown; accepted: 'a', 'b'"
    assert _refused(choice, np.array(["a"]), ("a", "b")).endswith("accepted: 'a', 'b'")
    assert _made(boolean, np.True_) is True
    assert _refused(boolean, 1) == "x=1 must be True or False"
    assert _made(instance, 5, int, "5") == 5
    assert _refused(instance, "5", int, "5") == "x='5' must be an instance of int, for example 5"


def test_long_values_are_shortened():
    assert len(_refused(choice, "a" * 10_000, ("b",))) < 200
