"""Processors of models that take videos, on a machine without torchvision."""

import importlib.util
import shutil

import pytest
from PIL import Image
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tokenprune import cli
from tokenprune.eval import minivlm
from tokenprune.eval.errors import CommandError
from tokenprune.eval.processors import check_videos, load_processor, takes_videos

from ..support import processors

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is not None, reason="about machines without torchvision"
)


@pytest.mark.parametrize("model_type", processors.IMAGES)
def test_pictures_without_torchvision(tmp_path, model_type):
    if model_type not in CONFIG_MAPPING:
        pytest.skip("newer than this version of transformers")
    processor = load_processor(str(processors.save(model_type, tmp_path)))
    content = [{"type": "image"}, {"type": "text", "text": "what"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}])
    batch = processor(images=[Image.new("RGB", (24, 24), "red")], text=[text], return_tensors="pt")
    token = processor.tokenizer.convert_tokens_to_ids(processors.placeholder(model_type))
    assert (batch["input_ids"] == token).sum() > 3
    assert not takes_videos(processor)
    with pytest.raises(CommandError, match=r"^videos need torchvision, of the build for torch [^\n]+ installed$"):
        check_videos(processor)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """The embedded Qwen2.5-VL in a folder of its own, as a user's checkpoint."""
    return shutil.copytree(minivlm.WEIGHTS["qwen"], tmp_path_factory.mktemp("checkpoints") / "my-qwen")


def test_show_of_a_folder_without_torchvision(qwen, tmp_path):
    cli.main(["show", "--model", str(qwen), "--new-tokens", "2", "--out", str(tmp_path / "deep" / "kept.png")])
    assert Image.open(tmp_path / "deep" / "kept.png").width > 500


def test_profile_of_a_folder_without_torchvision(qwen, capsys):
    few = ["--keep", "0.25", "--new-tokens", "2", "--rounds", "1", "--image-size", "96"]
    cli.main(["profile", "--model", str(qwen), *few])
    assert "divprune 0.25" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        cli.main(["profile", "--model", str(qwen), *few[:-2], "--frames", "4"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("tokenprune profile: videos need torchvision, of the build for torch")
