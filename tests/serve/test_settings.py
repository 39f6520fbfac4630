"""What the vLLM plugin decides without an engine: settings and refusals. With one: tests/vllm."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import tokenprune
from tokenprune.policies import Auto, UnknownPolicyError
from tokenprune.policies.random import Random
from tokenprune.policies.registration import registry
from tokenprune.serve import tables
from tokenprune.serve.architectures import CLIP, SERVED, UNHEARD
from tokenprune.serve.settings import (
    KEEP,
    OPTIONS,
    PER_FRAME,
    POLICY,
    Settings,
    UnservablePolicyError,
    check_encoder,
    parse_keep,
)

LLAVA = SimpleNamespace(model_type="llava")


def _config(**given):
    return SimpleNamespace(model_type="llava", tokenprune=given)


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for name in (POLICY, KEEP, OPTIONS, PER_FRAME):
        monkeypatch.delenv(name, raising=False)


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv(POLICY, "random")
    assert Settings.of(LLAVA).keep == 0.25  # the family's default
    assert Settings.of(SimpleNamespace(model_type="qwen2_5_vl")).keep == 0.5
    monkeypatch.setenv(KEEP, "64")
    monkeypatch.setenv(OPTIONS, '{"seed": 3}')
    found = Settings.of(LLAVA)
    assert (found.keep, found.policy.seed, found.name, found.options) == (64, 3, "random", {"seed": 3})


def test_frames_one_by_one(monkeypatch):
    monkeypatch.setenv(POLICY, "divprune")
    assert not Settings.of(LLAVA).per_frame
    monkeypatch.setenv(PER_FRAME, "1")
    found = Settings.of(LLAVA)
    assert found.per_frame
    assert not found.policy.per_frame  # nor the policy
    assert not registry()["divprune"].per_frame  # the class is not touched


def test_settings_of_the_config_go_first(monkeypatch):
    monkeypatch.setenv(POLICY, "random")
    config = SimpleNamespace(model_type="llava", tokenprune={"policy": "divprune", "keep": 0.1})
    assert (Settings.of(config).name, Settings.of(config).keep) == ("divprune", 0.1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no policy"),
        ({"policy": "divprun"}, "Did you mean 'divprune'"),
        ({"policy": "divprune", "keep": 0}, "accepted"),
        ({"policy": "divprune", "keep": 1.5}, "accepted"),
        ({"policy": "random", "options": {"sed": 1}}, "it takes: seed"),
        ({"policy": "divprune", "kep": 0.1}, "accepted keys: policy, keep, options, per_frame"),
    ],
)
def test_settings_that_make_no_sense(given, message):
    with pytest.raises(ValueError, match=message):
        Settings.of(SimpleNamespace(model_type="llava", tokenprune=given))


#: Of each setting, JSON that is not accepted, and what the error says is.
WRONG = {
    "options": (["[1]", "[]", "5", "null", "true", '"x"', '"{}"'], "accepted: options by name"),
    "per_frame": (
        ['"false"', '"0"', "null", "2", "-1", "1.0", "0.0", "[]", "{}", "[true]"],
        "accepted: true, false, 1, 0",
    ),
    "keep": (
        ["0", "-1", "0.0", "-0.5", "1.5", "1e300", "1e-400", "true", '"0.5"', '"64"', "[1]", "{}", "9" * 400]
        + [str(2**53 + 1)],
        r"accepted: a keep ratio in \(0, 1\]",
    ),
}
VARIABLES = {"options": OPTIONS, "per_frame": PER_FRAME, "keep": KEEP}


@pytest.mark.parametrize(("key", "text"), [(key, text) for key, (texts, _) in WRONG.items() for text in texts])
def test_wrong_values_are_named_where_they_were_written(monkeypatch, key, text):
    monkeypatch.setenv(POLICY, "random")
    monkeypatch.setenv(VARIABLES[key], text)
    with pytest.raises(ValueError, match=f"^{VARIABLES[key]}=.*{WRONG[key][1]}"):
        Settings.of(LLAVA)
    with pytest.raises(ValueError, match=f"^--hf-overrides tokenprune.{key}=.*{WRONG[key][1]}"):
        Settings.of(_config(policy="random", **{key: json.loads(text)}))


@pytest.mark.parametrize("variable", VARIABLES.values())
@pytest.mark.parametrize(
    "text",
    ["x", "{", "False", "yes", "NaN", "Infinity", "-Infinity", "1e400", '{"seed": NaN}', '{"seed": -1e999}']
    + ['{"seed": 1, "seed": 2}', '{"seed": {"a": 1, "a": 1}}', "0x10", "1,5", "  ", "9" * 5000, "[" * 100_000],
)
def test_a_variable_that_is_no_json(monkeypatch, variable, text):
    monkeypatch.setenv(POLICY, "random")
    monkeypatch.setenv(variable, text)
    with pytest.raises(ValueError, match=f"^{variable}=.* cannot be read as JSON .*; for example: ") as error:
        Settings.of(LLAVA)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ('{"seed": "x"}', "seed='x' must be a whole number >= 0"),
        ('{"seed": 1.0}', "seed=1.0 must be a whole number"),
        ('{"seed": true}', "seed=True must be a whole number"),
        ('{"seed": null}', "seed=None must be a whole number"),
        ('{"seed": [1]}', r"seed=\[1\] must be a whole number"),
        ('{"nope": 1}', "unknown option 'nope' for policy 'random'; it takes: seed"),
        ('{"policy": "divprune"}', "'policy'"),
    ],
)
def test_options_that_the_policy_refuses(monkeypatch, options, message):
    monkeypatch.setenv(POLICY, "random")
    monkeypatch.setenv(OPTIONS, options)
    with pytest.raises(ValueError, match=rf"^{OPTIONS}=\{{.*\}} does not fit: .*{message}"):
        Settings.of(LLAVA)
    with pytest.raises(ValueError, match=rf"^--hf-overrides tokenprune.options=\{{.*\}} does not fit: .*{message}"):
        Settings.of(_config(policy="random", options=json.loads(options)))


@pytest.mark.parametrize("policy", [5, 0, False, ["random"], [], {"random": 1}, Random()])
def test_a_policy_is_given_by_its_name(policy):
    with pytest.raises(ValueError, match=r"^--hf-overrides tokenprune.policy=.* is no name; accepted: auto, "):
        Settings.of(_config(policy=policy))


def test_an_unknown_policy_is_named_where_it_was_written(monkeypatch):
    monkeypatch.setenv(POLICY, "divprun")
    with pytest.raises(UnknownPolicyError, match=f"^{POLICY}: .*Did you mean 'divprune'"):
        Settings.of(LLAVA)
    with pytest.raises(UnknownPolicyError, match=r"^--hf-overrides tokenprune.policy: .*Did you mean 'divprune'"):
        Settings.of(_config(policy="divprun"))


@pytest.mark.parametrize(
    ("text", "per_frame"), [("0", False), ("false", False), ("1", True), ("true", True), ("", False)]
)
def test_yes_and_no(monkeypatch, text, per_frame):
    monkeypatch.setenv(POLICY, "divprune")
    monkeypatch.setenv(PER_FRAME, text)
    assert Settings.of(LLAVA).per_frame is per_frame
    if text:
        assert Settings.of(_config(policy="divprune", per_frame=json.loads(text))).per_frame is per_frame


def test_options_that_are_accepted(monkeypatch):
    monkeypatch.setenv(POLICY, "auto")
    monkeypatch.setenv(OPTIONS, '{"depths": [], "words": 3, "asked": 0}')
    monkeypatch.setenv(KEEP, str(2**53))
    found = Settings.of(LLAVA)
    assert (found.policy, found.keep) == (Auto(depths=(), words=3, asked=0), 2**53)
    assert int(torch.tensor(float(found.keep), dtype=torch.float64)) == 2**53  # as it travels


@pytest.mark.parametrize("text", ["a", "true", '"0.1"', "[1]"])
def test_a_budget_that_is_no_number(text):
    with pytest.raises(ValueError, match=KEEP):
        parse_keep(text, KEEP)


def test_one_and_all():
    assert isinstance(parse_keep("1", KEEP), int)
    assert isinstance(parse_keep("1.0", KEEP), float)


def _served(name, heard, reads_pixels=False, **options):
    config = SimpleNamespace(model_type="llava", tokenprune={"policy": name, "options": options})
    check_encoder(Settings.of(config).policy, heard, reads_pixels)


def _refusals(heard, reads_pixels=False):
    found = {}
    for name in registry():
        try:
            _served(name, heard, reads_pixels)
        except UnservablePolicyError as error:
            found[name] = str(error)
    return found


def test_every_policy_is_served_or_refused_with_a_reason():
    reasons = {
        "inside the vision tower": {"tome", "flowcut", "downsample", "ipcv"},
        "before the vision tower": {"pixelprune", "rlt"},
        "inside the decoder": {"fastv", "pyramiddrop", "sparsevlm", "vtw", "dart", "todre", "priortr", "sieve"},
        "only after it has chosen": {"tokenflex", "holov"},
        "reads the pixels": {"erase"},
    }
    on_clip, on_qwen = _refusals(CLIP), _refusals(None)
    for reason, names in reasons.items():
        for name in names:
            assert reason in on_clip[name]
            assert reason in on_qwen[name]
    always = set().union(*reasons.values())
    assert set(on_clip) - always == {"prumerge", "prumerge_plus", "recoverable"}
    assert all("does not build" in on_clip[name] for name in set(on_clip) - always)
    assert set(on_qwen) - always == {
        "prumerge", "prumerge_plus", "recoverable", "fopru", "scope", "visionzip", "vispruner", "fastvid",
        "flashvid", "holitom", "coverpruner",
    }  # fmt: skip
    assert all("not heard" in on_qwen[name] for name in set(on_qwen) - always)
    assert set(on_qwen) - set(_refusals(None, reads_pixels=True)) == {"pixelprune", "rlt"}
    on_internvl = _refusals(UNHEARD)  # CLS is there, so that a policy cannot do without its attention
    assert set(on_internvl) >= set(on_qwen)
    assert all("not heard" in on_internvl[name] for name in set(on_internvl) - always)


@pytest.mark.parametrize(
    ("policy", "given", "keep"),
    [("pixelprune", {}, None), ("pixelprune", {"keep": 0.5}, 0.5), ("rlt", {}, None), ("prumerge", {}, 0.25)],
)
def test_without_a_budget_a_policy_that_chooses_by_pixels_finds_its_count(policy, given, keep):
    assert Settings.of(_config(policy=policy, **given)).keep == keep


def test_the_table_names_every_architecture_and_its_class():
    table = tables.architectures()
    for name, served in SERVED.items():
        assert f"| {served.title} | `{name}` | " in table
        module, _, cls = served.path.partition(":")
        path = Path(tokenprune.__file__).parents[1] / f"{module.replace('.', '/')}.py"
        assert f"class {cls}(" in path.read_text()
        assert f"{name}`" in path.read_text()


def test_options_that_make_a_policy_servable():
    with pytest.raises(UnservablePolicyError, match="removal=False"):
        _served("todre", None)
    _served("todre", None, removal=False)
    with pytest.raises(UnservablePolicyError, match="only after it has chosen"):
        _served("fopru", CLIP, strategy="row")
    _served("holov", CLIP, surplus="shared")
    _served("fopru", CLIP)
