"""Prompts, and files that hold them."""

import json

import numpy as np
import pytest
from PIL import Image

from tokenprune.eval.errors import CommandError
from tokenprune.eval.tune import Prompt
from tokenprune.eval.tune.prompts import digest, shared_sources
from tokenprune.eval.tune.readers import QUESTIONS, read_prompts, some_of


def picture(path, grey=0):
    Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(3):
        picture(tmp_path / "in" / f"{i}.png", 40 * i)
    (tmp_path / "in" / "notes.txt").write_text("none")
    return tmp_path


def lines(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def grey(prompt):
    """Grey levels of the pictures that the model gets, in order."""
    parts = [part for message in prompt.conversation() for part in message["content"]]
    return [part["image"].getpixel((0, 0))[0] for part in parts if part["type"] == "image"]


def test_rows_with_a_question(folder):
    rows = read_prompts(
        lines(
            folder,
            {"image": "in/1.png", "question": "Dark?", "answer": "yes"},
            "",
            {"images": ["in/2.png", "in/0.png"], "question": "Which?", "answers": ["first", 1]},
            {"question": "No picture?"},
        )
    )
    assert [grey(row) for row in rows] == [[40], [80, 0], []]
    assert [row.answers for row in rows] == [("yes",), ("first", "1"), ()]
    assert rows[0].conversation()[0]["content"][-1] == {"type": "text", "text": "Dark?"}
    assert [message["role"] for message in rows[1].conversation()] == ["user"]


def test_rows_with_messages(folder):
    two = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Dark?"}]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [{"type": "image", "path": "in/2.png"}, {"type": "text", "text": "And this?"}]},
    ]
    (row,) = read_prompts(lines(folder, {"messages": two, "image": "in/1.png"}))
    assert grey(row) == [40, 80]
    assert row.conversation()[1] == {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}
    assert len(row.sources()) == 2


def test_pictures_of_a_folder_are_asked_questions_in_turn(folder):
    rows = read_prompts(folder / "in")
    assert [row.question for row in rows] == list(QUESTIONS[:3])
    assert [grey(row) for row in rows] == [[0], [40], [80]]
    assert {row.question for row in read_prompts(folder / "in", "Dark?")} == {"Dark?"}


def test_a_picture_may_be_a_function():
    calls = []
    row = Prompt("Dark?", (lambda: calls.append(1) or Image.new("L", (4, 4), 9),))
    assert not calls
    assert grey(row) == [9]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{", "line 1 is no JSON object"),
        ("[1]", "line 1 is no JSON object"),
        ({"image": "in/1.png"}, "line 1: a prompt has either a question or messages"),
        ({"question": "a", "messages": [{"role": "user", "content": "b"}]}, "either a question or messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "1 parts of type image without a source, and 0",
        ),
        (
            {"messages": [{"role": "user", "content": "b"}], "image": "in/1.png"},
            "0 parts of type image .* and 1 are given",
        ),
        ({"messages": "b"}, "line 1: .*; a row has question or messages"),
    ],
)
def test_rows_that_are_no_prompts_are_named(folder, row, told):
    with pytest.raises(CommandError, match=f"rows.jsonl, .*{told}"):
        read_prompts(lines(folder, row))


def test_files_without_prompts_are_refused(folder, tmp_path):
    for path, told in (
        (lines(folder), "has no prompts"),
        (tmp_path / "none", "no such file or folder"),
        (picture(tmp_path / "a.png"), "is no text"),
    ):
        with pytest.raises(CommandError, match=told):
            read_prompts(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CommandError, match="has no pictures"):
        read_prompts(tmp_path / "empty")
    (tmp_path / "splits" / "train").mkdir(parents=True)
    (tmp_path / "splits" / "dataset_dict.json").write_text("{}")
    (tmp_path / "splits" / "train" / "dataset_info.json").write_text("{}")
    with pytest.raises(CommandError, match=r"several splits; name one: .*splits/train"):
        read_prompts(tmp_path / "splits")


def test_a_digest_follows_the_content_of_files(folder):
    rows = read_prompts(folder / "in")
    before = digest(rows)
    assert digest(read_prompts(folder / "in")) == before
    assert digest(rows[::-1]) != before
    picture(folder / "in" / "1.png", 200)
    assert digest(read_prompts(folder / "in")) != before


def test_prompts_that_share_a_picture_are_counted(folder):
    same = picture(folder / "copy.png", 40)
    one, other = folder / "in" / "1.png", folder / "in" / "2.png"
    assert shared_sources([Prompt("a", (one,)), Prompt("b", (other,)), Prompt("c", (same,)), Prompt("d")]) == 1


def test_some_prompts_at_random_are_always_the_same():
    rows = [Prompt(str(i)) for i in range(50)]
    assert some_of(rows, 10, 0) == some_of(rows, 10, 0) != some_of(rows, 10, 1)
    assert len({row.question for row in some_of(rows, 10, 0)}) == 10
    assert some_of(rows, None, 0) == some_of(rows, 50, 0) == rows
