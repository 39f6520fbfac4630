"""The checks of options: whole numbers, numbers in a range, choices."""

import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tokenprune.validate import boolean, choice, instance, real, reals, seed, whole


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
