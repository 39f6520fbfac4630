"""Prompts for `tokenprune tune` that need packages of this environment: tasks of lmms-eval, datasets, videos."""

import contextlib
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tokenprune import Recipe, cli, tune
from tokenprune.eval.answers import held_out
from tokenprune.eval.checkpoints import load_checkpoint
from tokenprune.eval.errors import CommandError
from tokenprune.eval.lmms import harness
from tokenprune.eval.tune import Prompt, lmms_tasks
from tokenprune.eval.tune.prompts import digest
from tokenprune.eval.tune.readers import read_prompts
from tokenprune.eval.videos import decode_videos, read_video

TUNED = ["--policy", "divprune", "--keep", "0.9", "--cost", "flops", "--batch-size", "8", "--new-tokens", "5"]


def run(data, out, *more):
    cli.main(["tune", "--data", str(data), "--tolerance", "0.4", *TUNED, *more, "--out", str(out)])
    return Recipe.read(out)


def greys(prompt):
    """Grey levels of the pictures that the model gets, in order."""
    parts = [part for message in prompt.conversation() for part in message["content"]]
    return [part["image"].getpixel((0, 0))[0] for part in parts if part["type"] == "image"]


# ---------------------------------------------------------------- tasks of lmms-eval


@pytest.fixture(scope="module")
def letters():
    return harness.load_tasks("tokenprune_embedded_letter")[0]


def test_a_task_asks_what_the_harness_asks(letters, monkeypatch):
    monkeypatch.setattr(lmms_tasks, "load_tasks", lambda name: [letters])
    prompts = read_prompts("lmms:tokenprune_embedded_letter")
    samples = [sample for sample in held_out(60) if sample.question.type == "letter"]
    assert len(prompts) == 78 > len(samples) > 5
    for prompt, sample in zip(prompts, samples, strict=False):
        (message,) = prompt.conversation()
        picture, text = message["content"]
        assert text == {"type": "text", "text": sample.question.text}
        assert np.array_equal(np.asarray(picture["image"]), sample.scene.image)
        assert prompt.answers == (sample.question.answer,)


def test_a_group_is_all_of_its_tasks(letters, monkeypatch):
    nested = {"group": {"first": letters, "inner": {"second": letters}}, "third": letters}
    monkeypatch.setattr(harness, "fetch", lambda names, manager, kind: [nested])
    assert harness.load_tasks("tokenprune_embedded") == [letters] * 3


def test_the_command_tunes_on_a_task(tmp_path, capsys):
    recipe = run("lmms:tokenprune_embedded_letter", tmp_path / "r.json", "--samples", "16")
    assert recipe.measured["accuracy"]["labelled_prompts"] == 8
    assert recipe.measured["certificate"]["prompts"] == 16
    assert json.loads((tmp_path / "r.tune" / "results.json").read_text())["source"] == "lmms:tokenprune_embedded_letter"


def test_tasks_that_cannot_be_asked():
    with pytest.raises(ValueError, match="no task 'tokenprune_embeded'; did you mean tokenprune_embedded"):
        read_prompts("lmms:tokenprune_embeded")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"output_type": "loglikelihood"}, "output type 'loglikelihood'; accepted: 'generate_until'"),
        ({"doc_to_visual": lambda doc: ["sound.wav"]}, "question 0 has audio as str; accepted: pictures"),
        ({"doc_to_visual": lambda doc: [{"url": "a.mp4", "video_start": 1}]}, "question 0 has video as dict"),
    ],
)
def test_tasks_that_ask_otherwise_are_refused(monkeypatch, letters, changes, told):
    for name, value in changes.items():
        monkeypatch.setattr(letters.config, name, value)
    monkeypatch.setattr(lmms_tasks, "load_tasks", lambda name: [letters])
    with pytest.raises(CommandError, match=told):
        read_prompts("lmms:tokenprune_embedded_letter")


def test_a_target_that_is_no_text_is_no_answer(monkeypatch, letters):
    for target, expected in (({"a": 1}, ()), ([1, "b"], ("1", "b")), (3, ("3",))):
        monkeypatch.setattr(letters.config, "doc_to_target", lambda doc, target=target: target)
        monkeypatch.setattr(lmms_tasks, "load_tasks", lambda name: [letters])
        assert read_prompts("lmms:tokenprune_embedded_letter")[0].answers == expected


# ---------------------------------------------------------------- datasets on disk


def grey(level):
    return Image.fromarray(np.full((8, 8, 3), level, np.uint8))


@pytest.fixture
def several(tmp_path):
    """Rows with no picture, one and two, in columns with the names that are read."""
    rows = {
        "question": ["None?", "Which?", "Both?"],
        "images": [[], [grey(40)], [grey(80), grey(120)]],
        "answers": [["no"], ["a", "b"], []],
        "other": [1, 2, 3],
    }
    features = datasets.Features(
        question=datasets.Value("string"),
        images=[datasets.Image()],
        answers=[datasets.Value("string")],
        other=datasets.Value("int64"),
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "several")
    return tmp_path / "several"


def test_a_dataset_with_several_pictures_in_a_row(several):
    prompts = read_prompts(several)
    assert [greys(prompt) for prompt in prompts] == [[], [40], [80, 120]]
    assert [prompt.answers for prompt in prompts] == [("no",), ("a", "b"), ()]
    assert digest(read_prompts(several)) == digest(prompts)


def test_a_dataset_with_messages_and_without_pictures_for_some(tmp_path):
    told = [
        [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "Dark?"}]}],
        [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}],
    ]
    made = datasets.Dataset.from_dict({"messages": told, "image": [grey(40), None]})
    made = made.cast_column("image", datasets.Image())
    made.save_to_disk(tmp_path / "messages")
    prompts = read_prompts(tmp_path / "messages")
    assert [greys(prompt) for prompt in prompts] == [[40], []]


def test_one_split_of_several_is_read(tmp_path):
    split = datasets.Dataset.from_dict({"question": ["a"]})
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(tmp_path / "splits")
    with pytest.raises(CommandError, match=r"several splits; name one: .*splits/test, .*splits/train"):
        read_prompts(tmp_path / "splits")
    assert [prompt.question for prompt in read_prompts(tmp_path / "splits" / "train")] == ["a"]


def test_the_command_tunes_on_a_dataset_as_on_lines(tmp_path, capsys):
    samples = held_out(16)
    columns = {
        "image": [Image.fromarray(sample.scene.image) for sample in samples],
        "question": [sample.question.text for sample in samples],
        "answer": [sample.question.answer for sample in samples],
    }
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).save_to_disk(tmp_path / "set")
    rows = []
    for i, sample in enumerate(samples):
        columns["image"][i].save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "question": sample.question.text, "answer": sample.question.answer})
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    of_set, of_lines = run(tmp_path / "set", tmp_path / "set.json"), run(lines, tmp_path / "lines.json")
    for name in ("certificate", "accuracy", "cost"):
        assert of_set.measured[name] == of_lines.measured[name]


# ---------------------------------------------------------------- videos


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder of clips of eight frames each, all of one grey level that grows from frame to frame."""
    import av

    folder = tmp_path_factory.mktemp("clips")
    for number in range(9):
        kind = "mkv" if number == 8 else "mp4"  # Matroska does not say how many frames there are
        with av.open(str(folder / f"{number}.{kind}"), "w") as container:
            stream = container.add_stream("mpeg4", rate=4)
            stream.width = stream.height = 32
            for i in range(8):
                picture = np.full((32, 32, 3), 20 * i + 8 * number, np.uint8)
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
    return folder


def test_frames_are_evenly_spaced(clips):
    frames, _ = read_video(clips / "0.mp4", 3)
    assert frames.shape == (3, 32, 32, 3)
    assert np.abs(frames.mean((1, 2, 3)) - [0, 80, 140]).max() < 3  # frames 0, 4 and 7
    assert len(read_video(clips / "0.mp4")[0]) == 8
    assert len(read_video(clips / "8.mkv")[0]) == 8 and len(read_video(clips / "8.mkv", 3)[0]) == 3


def test_rows_with_videos(clips):
    rows = [
        {"video": "0.mp4", "question": "What ?"},
        {"videos": ["1.mp4", "2.mp4"], "question": "Which ?", "answer": "yes"},
        {
            "messages": [
                {"role": "user", "content": [{"type": "video", "path": "3.mp4"}, {"type": "text", "text": "a"}]}
            ]
        },
    ]
    path = clips / "few.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    prompts = read_prompts(path)
    assert all(prompt.has_videos for prompt in prompts)
    conversations = [prompt.conversation() for prompt in prompts]
    options = decode_videos(conversations, 2)
    found = [part["video"] for talk in conversations for part in talk[0]["content"] if part["type"] == "video"]
    assert [len(each) for each in found] == [2] * 4 == [len(each.frames_indices) for each in options["video_metadata"]]
    assert np.abs([each[0].mean() - 8 * i for i, each in enumerate(found)]).max() < 4


def test_the_command_tunes_on_videos(clips, qwen, tmp_path, capsys):
    path = clips / "rows.jsonl"
    rows = [{"video": f"{i}.mp4", "question": f"What is there ? word{i}"} for i in range(8)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    held = {}
    for frames in (2, 8):
        out = tmp_path / f"{frames}.json"
        with contextlib.suppress(SystemExit):  # answers of random weights change
            run(path, out, "--model", str(qwen["qwen2_5_vl"]), "--frames", str(frames))
        (tested,) = json.loads((out.with_suffix(".tune") / "results.json").read_text())["tested"]
        held[frames] = tested["visual_tokens"]
    assert held == {2: round(0.9 * 16), 8: round(0.9 * 64)}


def test_videos_that_cannot_be_read(clips, tmp_path):
    (tmp_path / "no.mp4").write_text("none")
    with pytest.raises(CommandError, match=r"none\.mp4: no such file"):
        read_video("none.mp4")
    with pytest.raises(CommandError, match=r"no\.mp4 cannot be read as a video"):
        read_video(tmp_path / "no.mp4")
    llava = load_checkpoint("llava", torch.float32, torch.device("cpu"))
    with pytest.raises(CommandError, match="model type 'llava' takes no videos"):
        tune(*llava, [Prompt("What ?", videos=[str(clips / f"{i}.mp4")]) for i in range(8)])
