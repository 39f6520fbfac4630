"""Policies as text: what is read, what tables call it, and what errors say."""

import dataclasses

import pytest

from tokenprune import Schedule, UnknownPolicyError, cli, list_policies
from tokenprune.eval.bench.run import settings as bench_settings
from tokenprune.eval.lmms.options import model_args, take_pruning
from tokenprune.eval.policy_names import make_named_policy, option_defaults, parse_policy, policy_label, split_list
from tokenprune.eval.setting import PruningSetting, settings_grid
from tokenprune.policies import (
    VTW,
    AtPixels,
    Auto,
    DivPrune,
    FastV,
    FoPru,
    PixelPrune,
    PyramidDrop,
    Random,
    SparseVLM,
    registry,
)

SEVERAL = Schedule((0.25, 0.5), (3, 1))


@pytest.mark.parametrize(
    ("text", "policies", "label"),
    [
        ("fastv", (FastV(),), "fastv"),
        ("fastv:layer=2", (FastV(),), "fastv:layer=2"),
        (" fastv : layer = 3 ", (FastV(layer=3),), "fastv:layer=3"),
        ("divprune+fastv:layer=3", (DivPrune(), FastV(layer=3)), "divprune+fastv:layer=3"),
        ("fopru:strategy=row:include_cls_query=False", (FoPru("row", False),), None),
        ("fopru:strategy='row'", (FoPru("row"),), "fopru:strategy=row"),
        ("auto:depths=(0.25, 0.5)", (Auto(depths=(0.25, 0.5)),), "auto:depths=(0.25,0.5)"),
        ("auto:depths=()", (Auto(depths=()),), None),
        ("pyramiddrop:schedule=(0.25,0.5)", (PyramidDrop(Schedule((0.25, 0.5))),), None),
        ("pyramiddrop:schedule=0.5", (PyramidDrop(Schedule((0.5,))),), "pyramiddrop:schedule=(0.5,)"),
        ("sparsevlm:schedule=Schedule((0.25,0.5),(3,1))", (SparseVLM(SEVERAL),), None),
        ("sparsevlm:schedule=Schedule((0.25,0.5),counts=(3,1))", (SparseVLM(SEVERAL),), None),
        ("auto:length=1e-1:depths=()+vtw:depth=2.5e-1", (Auto(length=0.1, depths=()), VTW(0.25)), None),
        ("random:seed=3+vtw", (Random(3), VTW()), "random:seed=3+vtw"),
        ("divprune@pixels", (AtPixels(DivPrune()),), "divprune@pixels"),
        ("pixelprune:tau=0.1+divprune", (PixelPrune(0.1), DivPrune()), "pixelprune:tau=0.1+divprune"),
    ],
)
def test_what_is_read_and_what_tables_call_it(text, policies, label):
    setting = PruningSetting(text, 0.5)
    assert setting.policies == policies
    assert label is None or setting.name == label
    assert str(setting) == f"{setting.name} 0.5"
    again = PruningSetting(setting.name, 0.5)
    assert again.policies == policies and again.name == setting.name
    assert PruningSetting(PruningSetting(policies, 0.5).name).policies == policies


@pytest.mark.parametrize("name", list_policies())
def test_every_option_can_be_written_with_its_default(name):
    """A new type of option that text cannot express fails here."""
    cls = registry()[name]
    defaults = option_defaults(cls)
    assert len(defaults) == sum(field.init for field in dataclasses.fields(cls))
    assert make_named_policy(policy_label(name, defaults)) == cls()


def test_an_exponent_does_not_compose():
    assert parse_policy("auto:length=1e-1:asked=1e+0") == ("auto", {"length": 0.1, "asked": 1.0})
    with pytest.raises(ValueError, match=r"depth=20000000000\.0 must be"):  # one policy, not `vtw:depth=2e` and `10`
        PruningSetting("vtw:depth=2e+10")


def test_lists_split_at_commas_outside_brackets_and_quotes():
    text = "fastv:layer=3, auto:depths=(0.1,0.2) ,,x:a='b,c',y:d={1:2,3:4}+z,"
    assert split_list(text) == ["fastv:layer=3", "auto:depths=(0.1,0.2)", "x:a='b,c'", "y:d={1:2,3:4}+z"]
    assert parse_policy("y:d={1:2,3:4}:e=[1,2]") == ("y", {"d": {1: 2, 3: 4}, "e": [1, 2]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fastv:layr=3", r"unknown option 'layr' for policy 'fastv'; it takes: layer; .*defaults: layer=2"),
        ("fastv:layer=x", r"policy 'fastv:layer=x': layer='x' must be a whole number"),
        ("fastv:layer", "'layer' is no option; write NAME:OPTION=VALUE"),
        ("fastv:layer=", "'layer=' is no option"),
        ("fastv:=3", "'=3' is no option"),
        ("fastv:", "'' is no option"),
        ("fastv:layer=1:layer=2", "option 'layer' is given twice"),
        ("divprune:x=1", "'x' for policy 'divprune'; it takes none; divprune has no options"),
        ("divprune+", "names no policy beside a '\\+'"),
        ("pyramiddrop:schedule=(0.5,0.2)", r"depths=\(0.5, 0.2\) must be"),
        ("pyramiddrop:schedule=Schedule(x)", r"schedule='Schedule\(x\)' must be an instance of Schedule"),
        ("pyramiddrop:schedule=Schedule(1,2,3)", "positional arguments"),
    ],
)
def test_errors_name_the_policy_and_what_it_takes(text, message):
    with pytest.raises(ValueError, match=message) as error:
        PruningSetting(text)
    assert text.rstrip("+") in str(error.value)


def test_an_unknown_name_is_told_as_such():
    for text in ("fastvv:layer=1", "fastvv@final", "divprune+fastvv"):
        with pytest.raises(UnknownPolicyError, match="Did you mean 'fastv'"):
            PruningSetting(text)
    with pytest.raises(ValueError, match=r"policy 'fastv' has no preset 'fast'; accepted: .*fastv@final"):
        PruningSetting("fastv@fast")


def test_options_beside_the_name():
    setting = PruningSetting("fopru:strategy=row", 0.5, options={"include_cls_query": False})
    assert setting.policies == (FoPru("row", False),)
    assert setting.name == "fopru:strategy=row:include_cls_query=False"
    with pytest.raises(ValueError, match="'strategy' is given twice"):
        PruningSetting("fopru:strategy=row", 0.5, options={"strategy": "rank"})


def test_settings_with_different_options_are_told_apart():
    settings = settings_grid(["fastv", "fastv:layer=1", "fastv:layer=3"], [0.5], full=False)
    assert len({setting.name for setting in settings}) == len({str(setting) for setting in settings}) == 3
    assert len({str(setting.identity()) for setting in settings}) == 3
    names = [setting.name for setting in bench_settings(["fastv:layer=1", "random:seed=3"], [0.5], ["original"])]
    assert names == ["full", "downsample", "random", "grid", "fastv:layer=1", "random:seed=3"]


@pytest.mark.parametrize("command", ["demo", "bench", "show", "profile", "eval", "report"])
def test_every_command_takes_options_and_compositions(command, capsys):
    parser = cli.parser()
    args = parser.parse_args([command, "--policy", "divprune+fastv : layer=3,auto:depths=(0.1,0.5)"])
    assert args.policy == ["divprune+fastv:layer=3", "auto:depths=(0.1,0.5)"]
    with pytest.raises(SystemExit) as stop:
        parser.parse_args([command, "--policy", "fastv:layr=3"])
    assert stop.value.code == 2
    assert "'layr' for policy 'fastv'; it takes: layer" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["fastv:layer=3", "divprune+fastv:layer=3", "auto:depths=(0.25,0.5)"])
def test_an_evaluation_hands_options_to_the_harness(text):
    """As the harness splits its arguments: at commas outside quotes and square brackets, and at the first `=`."""
    written = model_args(PruningSetting(text, 0.25))
    first, rest = written.split(",keep=")
    assert first.count(",") == 0 or first[7] == first[-1] == '"'
    name, value = first.split("=", 1)
    assert name == "policy" and rest.startswith("0.25")
    version = rest.partition("tokenprune_version=")[2]
    taken = take_pruning({"policy": value, "keep": 0.25, "tokenprune_version": version})
    assert taken == PruningSetting(text, 0.25)
