"""What a command is told to write is checked before any work."""

from pathlib import Path

import pytest

from tokenprune import cli
from tokenprune.eval.errors import CommandError
from tokenprune.eval.files import check_different, check_file, check_folder, picture_suffixes, write_json


def test_missing_folders_are_made_and_nothing_else(tmp_path):
    check_file(tmp_path / "a" / "b" / "x.png", "--out", picture_suffixes())
    check_folder(tmp_path / "c" / "d", "--out", ["results.json"])
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == ["a", "a/b", "c", "c/d"]


def test_what_is_there_keeps_its_content(tmp_path):
    (tmp_path / "x.json").write_text("old")
    check_file(tmp_path / "x.json", "--json")
    check_folder(tmp_path, "--out", ["x.json"])
    assert (tmp_path / "x.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("folder", "--out TMP/folder is a folder; name a file in it"),
        ("file/x.png", "--out TMP/file/x.png: TMP/file is a file, not a folder"),
        ("x.txt", r"--out TMP/x.txt ends in .txt; accepted: .png, "),
        ("x", "--out TMP/x has no suffix; accepted: .png, "),
        (f"{'x' * 300}.png", "cannot be written: File name too long"),
    ],
)
def test_files_that_cannot_be_written(tmp_path, path, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(CommandError) as error:
        check_file(tmp_path / path, "--out", picture_suffixes())
    assert message.replace("TMP", str(tmp_path)) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs Linux")
def test_a_place_that_takes_no_files():
    for check in (check_file, check_folder):
        with pytest.raises(CommandError, match=r"^--out /proc/nowhere/x.json cannot be written: "):
            check(Path("/proc/nowhere/x.json"), "--out")


def test_folders_that_cannot_take_results(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match="file is a file, not a folder"):
        check_folder(tmp_path / "file", "--out")
    (tmp_path / "results.json").mkdir()
    with pytest.raises(CommandError, match=r"results\.json is a folder; a file of that name is to be written"):
        check_folder(tmp_path, "--out", ["results.json"])


def test_two_options_for_one_file(tmp_path):
    check_different(out=tmp_path / "a", json=tmp_path / "b", plot=None)
    with pytest.raises(CommandError, match="--out and --json name the same file"):
        check_different(out=tmp_path / "a", json=tmp_path / "c" / ".." / "a")


def test_every_suffix_that_is_accepted_can_be_drawn(tmp_path):
    from matplotlib.figure import Figure

    for suffix in picture_suffixes():
        Figure(figsize=(1, 1)).savefig(tmp_path / f"x{suffix}")


def test_json_on_standard_output(capsys):
    write_json(Path("-"), {"a": 1})
    assert capsys.readouterr().out == '{\n "a": 1\n}\n'


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--out", "TMP"],
        ["demo", "--out", "TMP/x.txt"],
        ["demo", "--json", "TMP"],
        ["demo", "--out", "TMP/x.png", "--json", "TMP/x.png"],
        ["bench", "--out", "TMP/file"],
        ["bench", "--json", "TMP"],
        ["show", "--out", "TMP"],
        ["show", "--out", "TMP/x.txt"],
        ["report", "--out", "TMP"],
        ["report", "--out", "TMP/file/x.html"],
        ["profile", "--json", "TMP"],
        ["profile", "--plot", "TMP/x.txt"],
    ],
)
def test_commands_refuse_before_a_model_loads(arguments, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    nothing = classmethod(lambda *a, **k: pytest.fail("a model was loaded"))
    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_pretrained", nothing)
    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_config", nothing)
    with pytest.raises(SystemExit) as stop:
        cli.main([each.replace("TMP", str(tmp_path)) for each in arguments])
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"tokenprune {arguments[0]}: --") and printed.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
