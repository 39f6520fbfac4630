"""What `--model` names: an embedded model, a folder, or a checkpoint of the Hugging Face hub."""

from __future__ import annotations

import difflib
import importlib.util
import logging
import os
import re
from pathlib import Path

from . import minivlm
from .errors import CommandError

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_CONFIGS = ("config.json", "adapter_config.json")
_TIMEOUT = 10.0  # of the question whether the hub has a checkpoint, seconds


def find_checkpoint(name: str) -> str:
    """The argument of `from_pretrained` for a model's name.

    The hub is asked once. If it cannot be reached, what is in the local cache is used.

    Args:
        name: of an embedded model, a folder, or an id of the hub. A folder goes before `llava` and `qwen`.

    Raises:
        CommandError: there is no such model, or the hub cannot be reached and has not been asked for it before.
    """
    folder = Path(name).expanduser()
    if name in minivlm.EMBEDDED and not (name in minivlm.WEIGHTS and folder.is_dir()):
        return minivlm.checkpoint_path(name)
    if folder.is_dir():
        if not any((folder / config).is_file() for config in _CONFIGS):
            raise CommandError(f"{name} is a folder without a config.json, which is no checkpoint")
        return str(folder.resolve())
    if folder.exists():
        raise CommandError(f"{name} is a file; name the folder of a checkpoint")
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise CommandError(f"there is no folder {name}; {_accepted(name)}")
    return _of_hub(name)


def check_attention(name: str | None) -> None:
    """Check that an attention implementation can be had.

    Raises:
        CommandError: it needs a package that is not installed.
    """
    if name == "flash_attention_2" and not any(map(importlib.util.find_spec, ("flash_attn", "kernels"))):
        raise CommandError(
            "attention flash_attention_2 needs the package flash-attn, which is not installed: pip install flash-attn; "
            "sdpa needs none"
        )


def _of_hub(name: str) -> str:
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    cached = try_to_load_from_cache(name, _CONFIGS[0])
    try:
        HfApi().model_info(name, timeout=_TIMEOUT)
    except GatedRepoError as error:
        if isinstance(cached, str):
            return _cached(name, cached)
        raise CommandError(f"{name} is gated: accept its terms on the Hugging Face hub, then log in there") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        if isinstance(cached, str):
            return _cached(name, cached)
        raise CommandError(
            f"there is no folder {name}, and no model {name} on the Hugging Face hub; {_accepted(name)}"
        ) from error
    except HfHubHTTPError as error:  # the hub answers, but not this: transformers may get further
        logger.info("the hub does not say whether it has %s: %s", name, error)
    except Exception as error:  # no network, an answer that takes too long, HF_HUB_OFFLINE
        if isinstance(cached, str):
            return _cached(name, cached)
        raise CommandError(
            f"there is no folder {name}, and the Hugging Face hub cannot be asked for it ({error}); {_accepted(name)}"
        ) from error
    return name


def _cached(name: str, config: str) -> str:
    folder = os.path.dirname(config)
    logger.info("%s is taken from the cache: %s", name, folder)
    return folder


def _accepted(name: str) -> str:
    """What is accepted instead, the nearest first."""
    ours = tuple(minivlm.EMBEDDED)
    near = difflib.get_close_matches(name.lower(), ours, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}Accepted: {', '.join(ours)} (they ship with us), a folder with a checkpoint, or an id of the hub"
