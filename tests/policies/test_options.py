"""Options of policies are checked when the policy is made, and the error names the option."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from tokenprune.policies import (
    DART,
    VTW,
    Auto,
    FastVID,
    HoloV,
    MMTok,
    VidCom2,
    VisionZip,
    VisPruner,
    make_policy,
    registry,
)

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
GOOD = {
    ("fastvid", "threshold"): {"below zero"},  # a cosine: no cut at all
    ("flashvid", "threshold"): {"below zero"},
    ("flashvid", "linked"): {"below zero"},  # everything is linked
    ("holitom", "static"): {"below zero"},  # everything stands still
    ("vtw", "depth"): {"None"},  # as the budget says
}
GOOD_BOOLS = {"true", "NumPy bool"}


def test_there_are_policies_to_test():
    assert len(OURS) == 37
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
        ("auto", "attention", 1.01),
        ("auto", "least", -0.1),
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
        ("coverpruner", "weights", "Encoder"),
        ("erase", "least", 0),
        ("erase", "least", 0.9),
        ("erase", "most", 1.01),
        ("erase", "busy", 0),
        ("flashvid", "segments", 0),
        ("flashvid", "threshold", 1.01),
        ("flashvid", "alpha", 0),
        ("flashvid", "linked", -1.01),
        ("flashvid", "neighbours", 0),
        ("holitom", "static", 1.01),
        ("holitom", "clustered", 1.01),
        ("holitom", "neighbours", 0),
        ("holitom", "anchor", 1.01),
        ("priortr", "layer", 0),
        ("priortr", "query", "all"),
        ("sieve", "layer", 0),
        ("sieve", "heads", 0),
        ("sieve", "energy", 0),
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


@pytest.mark.parametrize(
    ("policy", "options", "named"),
    [
        (VisionZip, {"contextual": 1}, "contextual=1"),
        (VisPruner, {"important": 2}, "important=2"),
        (VisPruner, {"step": 0}, "step=0"),
        (MMTok, {"text_temperature": 0}, "text_temperature=0"),
        (HoloV, {"parts": 0}, "parts=0"),
        (VidCom2, {"channels": 0}, "channels=0"),
        (VidCom2, {"sharpness": 0}, "sharpness=0"),
        (FastVID, {"merged": 2}, "merged=2"),
        (FastVID, {"every": 0}, "every=0"),
        (Auto, {"asked": 1.5}, "asked=1.5"),
        (Auto, {"words": 0}, "words=0"),
        (Auto, {"diverse": 0.0}, "diverse=0.0"),
        (Auto, {"length": -1}, "length=-1"),
        (Auto, {"depths": (0.5, 1.0)}, r"depths=\(0.5, 1.0\)"),
        (DART, {"pivots": 0}, "pivots=0"),
        (VTW, {"depth": 1.0}, "depth=1.0"),
    ],
)
def test_bad_options_are_named(policy, options, named):
    with pytest.raises(ValueError, match=named):
        policy(**options)
