"""The command line itself: lists and how they look, what is said at which verbosity, what shells complete."""

import json
import logging
import os
import subprocess
import sys

import pytest

from tokenprune import cli, list_policies, list_supported_models
from tokenprune.commands import completers, policies
from tokenprune.eval import bench, minivlm, profile
from tokenprune.eval.bench import tasks
from tokenprune.eval.policy_names import make_named_policy
from tokenprune.eval.profile.shapes import SHAPES
from tokenprune.patches.families.refusals import image_text_types
from tokenprune.patches.families.registry import families, refused_by_version
from tokenprune.policies import Stage, registry

from .families import FAMILIES

COMMANDS = sorted(cli.parser().commands)


def printed(capsys, *arguments):
    cli.main(arguments)
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def stopped(capsys, *arguments):
    """Exit status and standard error of a command that fails; nothing is on standard output."""
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    captured = capsys.readouterr()
    assert captured.out == ""
    return stop.value.code, captured.err


# ------------------------------------------------------------ lists


def test_models_command(capsys):
    assert all(name in printed(capsys, "models") for name in FAMILIES)


def test_list_of_policies(capsys):
    text = printed(capsys, "policies")
    for words in (*list_policies(), "2503.02175", "encoder_attention", "decoder", "tau=0.1", "minimum cosine distance"):
        assert words in text


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("arguments", [["policies"], ["models"], *(["policies", name] for name in list_policies())])
def test_tables_fold_and_cut_no_name(capsys, monkeypatch, width, arguments):
    monkeypatch.setenv("COLUMNS", str(width))
    text = printed(capsys, *arguments)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    names = {"policies": list_policies(), "models": list_supported_models()}
    words = text.split()
    assert all(name in words for name in (arguments[1:] or names[arguments[0]]))


@pytest.mark.parametrize("stage", list(Stage))
def test_policies_of_a_stage(capsys, stage):
    found = [each["name"] for each in json.loads(printed(capsys, "policies", "--stage", stage, "--json"))]
    expected = [name for name, cls in registry().items() if stage in cls().stages]
    assert set(found) - set(expected) == ({"auto"} if stage == "decoder" else set())  # it goes on in the decoder
    assert set(expected) <= set(found) < set(registry())
    text = printed(capsys, "policies", "--stage", stage)
    assert [name for name in registry() if f"\n {name} " in text] == found


def test_policies_by_what_they_read(capsys):
    def found(*arguments):
        return {each["name"] for each in json.loads(printed(capsys, "policies", *arguments, "--json"))}

    by_need = {need: found("--needs", need) for need in policies.NEEDS}
    assert by_need["text"] == {name for name, cls in registry().items() if "text" in cls.needs}
    assert by_need["nothing"] == {name for name, cls in registry().items() if not cls.needs}
    assert set.union(*by_need.values()) == set(registry())
    assert found("--needs", "text", "--stage", "vision") == by_need["text"] & found("--stage", "vision")
    assert "no policy is like this" in printed(capsys, "policies", "--needs", "encoder_attention", "--stage", "encoder")


def test_what_policies_read_and_where_they_act_can_be_asked_for():
    assert tuple(Stage) == policies.STAGES
    assert set(policies.NEEDS) - {"nothing"} >= set().union(*(cls.needs for cls in registry().values()))


def test_policies_as_json(capsys):
    listed = json.loads(printed(capsys, "policies", "--json"))
    assert [each["name"] for each in listed] == list_policies()
    for each in listed:
        assert each["keeps"] and each["stages"] and each["paper"]
        options = "".join(f":{option}={value}" for option, value in each["options"].items())
        assert make_named_policy(each["name"] + options) == registry()[each["name"]]()
    (one,) = json.loads(printed(capsys, "policies", "fastv", "--json"))
    assert one == next(each for each in listed if each["name"] == "fastv")
    assert one["options"] == {"layer": "2"} and one["stages"] == ["decoder"] and one["needs"] == []


@pytest.mark.parametrize("name", list_policies())
def test_one_policy_in_full(capsys, name):
    text = " ".join(printed(capsys, "policies", name).split())
    cls = registry()[name]
    assert cls.paper in text and cls.keeps in text and cls.deviates in text
    meanings = policies._documented(cls)[1]
    assert set(meanings) == set(policies.facts(name, cls)["options"])  # every option is documented
    assert all(meaning.split()[0] in text for meaning in meanings.values())


def test_models_as_json_and_one_in_full(capsys):
    listed = json.loads(printed(capsys, "models", "--json"))
    assert [each["model_type"] for each in listed] == list_supported_models()
    (one,) = json.loads(printed(capsys, "models", "qwen3_5", "--json"))
    assert one["takes"] == ["image", "video"] and one["positions"] == "mrope" and one["default_keep"] == 0.5
    text = " ".join(printed(capsys, "models", "qwen3_5").split())
    assert one["no_decoder_stage"] in text and "images, videos" in text
    assert [each["no_decoder_stage"] for each in listed] == [family.no_decoder_stage for family in families().values()]
    assert "they act before it yes they act in it flowcut, ipcv they act" in text
    by_type = {each["model_type"]: each for each in listed}
    assert by_type["internvl"]["pixels_stage"] == "a number" and by_type["internvl"]["encoder_policies"] == ["ipcv"]
    assert by_type["vipllava"]["pixels_stage"] is None and by_type["vipllava"]["encoder_policies"] == []
    for each in listed:
        for stage, acts in (("pixels", each["pixels_stage"]), ("encoder", each["encoder_policies"])):
            assert bool(acts) == (each[f"no_{stage}_stage"] is None)
    assert "pixels, encoder, decoder" in printed(capsys, "models")


def test_all_models_are_listed_with_reasons(capsys):
    listed = json.loads(printed(capsys, "models", "--all", "--json"))
    assert {each["model_type"] for each in listed} >= {*list_supported_models(), *image_text_types()}
    text = " ".join(printed(capsys, "models", "--all").split())
    for each in listed:
        assert each["model_type"] in text and each.get("not_supported", "") in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models", "llava", "--all"], "leave out the name, or --all"),
        (["models", "mllama"], "'mllama' is not supported: its language model reads pictures by cross-attention"),
        (["policies", "fastvv"], "Did you mean 'fastv'"),
        (["policies", "fastv", "--stage", "vision"], "go with the list"),
        (["policies", "--markdown", "--needs", "text"], "goes with the whole list"),
        (["policies", "--stage", "visio"], "did you mean vision?"),
        (["models", "lava"], "did you mean llava? Supported: "),
        (["completion", "bsh"], "did you mean bash?"),
        (["polices"], "did you mean policies?"),
        (["demo", "--positions", "orignal"], "did you mean original?"),
    ],
)
def test_what_is_misspelt_is_suggested(capsys, arguments, message):
    status, text = stopped(capsys, *arguments)
    assert status == 2 and message in text


def test_without_a_command_there_is_help(capsys):
    text = printed(capsys)
    assert text.startswith("usage: tokenprune ") and all(f"    {name} " in text for name in COMMANDS)
    assert printed(capsys, "-v") == text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_defaults_that_there_are(capsys, command):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "default: None" not in text and "SUPPRESS" not in text
    assert ("--keep" in text) <= ("(default: 0." in text)


# ------------------------------------------------------------ lists that are written without importing what they are of


def test_names_in_help_are_those_that_there_are():
    assert tuple(SHAPES) == profile.CONFIGS
    assert tasks.TASKS is bench.TASKS
    parser = cli.parser()
    for name in minivlm.NAMES:
        assert parser.parse_args(["bench", "--model", name, "--policy", "grid"]).model == name
    for name, folder in minivlm.EMBEDDED.items():
        assert parser.parse_args(["bench", "--model", name, "--policy", "grid"]).model == folder.name


def test_all_policies_of_the_benchmark():
    parser = cli.parser()
    assert parser.parse_args(["bench"]).policy == [name for name in list_policies() if name != "downsample"]


def test_names_to_complete_are_those_that_there_are():
    assert completers.policy_names() == list_policies()
    assert set(completers.model_types()) == {*list_supported_models(), *refused_by_version()} - {"lfm2-vl"}
    assert completers.models("")[: len(minivlm.EMBEDDED)] == list(minivlm.EMBEDDED)


# ------------------------------------------------------------ shells


def completions(line):
    """What a shell is offered at the end of a line."""
    environment = os.environ | {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": "/dev/stdout",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    code = "from tokenprune.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return [each.strip() for each in done.stdout.split("\n") if each]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tokenprune pol", ["policies"]),
        ("tokenprune policies fas", ["fastv", "fastvid"]),
        ("tokenprune demo --policy divprune,fas", ["divprune,fastv", "divprune,fastvid"]),
        ("tokenprune show --policy grid+vt", ["grid+vtw"]),
        ("tokenprune policies --stage ", ["pixels", "encoder", "vision", "decoder"]),
        ("tokenprune show --model embedded-", ["embedded-qwen", "embedded-qwen3", "embedded-qwen-pages"]),
        ("tokenprune bench --tasks word,tab", ["word,table"]),
        ("tokenprune models qwen2_", ["qwen2_5_omni_thinker", "qwen2_5_vl", "qwen2_vl"]),
        ("tokenprune profile --config qwen3", ["qwen3-vl-2b", "qwen3-vl-8b"]),
    ],
)
def test_shells_complete(line, expected):
    assert completions(line) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_line_for_a_shell_makes_its_code(capsys, shell):
    (line,) = printed(capsys, "completion", shell).splitlines()
    command = line.partition("  #")[0].removeprefix('eval "$(').removesuffix(')"').removesuffix(" | source")
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert "tokenprune" in done.stdout and "_ARGCOMPLETE" in done.stdout


def test_bash_takes_the_line(capsys):
    line = printed(capsys, "completion", "bash")
    done = subprocess.run(["bash", "-c", f"{line}\ncomplete -p tokenprune"], capture_output=True, text=True, check=True)
    assert "_python_argcomplete" in done.stdout


# ------------------------------------------------------------ verbosity


@pytest.mark.parametrize(
    ("arguments", "level"),
    [
        (["models"], logging.WARNING),
        (["models", "-v"], logging.INFO),
        (["-v", "models"], logging.INFO),
        (["-v", "models", "-v"], logging.DEBUG),
        (["models", "-vv"], logging.DEBUG),
        (["models", "-vvv"], logging.DEBUG),
        (["-q", "models"], logging.ERROR),
        (["models", "--quiet"], logging.ERROR),
        (["-v", "models", "-q"], logging.WARNING),
    ],
)
def test_verbosity_goes_before_or_after_the_command(capsys, arguments, level):
    before = logging.getLogger().handlers[:]
    printed(capsys, *arguments)
    assert logging.getLogger("tokenprune").level == level
    assert logging.getLogger().handlers == before


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_verbosity(command):
    parser = cli.parser()
    shell = {"completion": ["bash"], "tune": ["--data", "questions.jsonl"]}.get(command, [])
    assert parser.parse_args(["-v", command, *shell, "-q", "-q"]).verbosity_of_command == [-1, -1]


def test_messages_are_written_once(capsys):
    cli.main(["models"])
    cli.main(["models", "-v"])
    capsys.readouterr()
    logging.getLogger("tokenprune.somewhere").info("told")
    logging.getLogger("tokenprune.somewhere").debug("not told")
    assert capsys.readouterr().err == "INFO tokenprune.somewhere: told\n"


def test_quiet_shows_results_and_no_progress(tmp_path, capsys):
    """On a terminal, where a bar would move."""
    code = (
        "import sys; from rich.console import Console; from tokenprune.commands import arguments;"
        "from tokenprune.eval.progress import progress_bar; import argparse\n"
        "console = arguments.console(argparse.Namespace(verbosity=int(sys.argv[1])))\n"
        "with progress_bar(console) as bar: bar.advance(bar.add_task('asking', total=2))\n"
        "console.print('result')"
    )
    environment = os.environ | {"FORCE_COLOR": "1", "TERM": "xterm"}
    shown = {
        verbosity: subprocess.run(
            [sys.executable, "-c", code, verbosity], capture_output=True, text=True, check=True, env=environment
        ).stdout
        for verbosity in ("0", "-1")
    }
    assert "asking" in shown["0"] and "result" in shown["0"]
    assert shown["-1"] == "result\n"
