"""Pruned vision-language models for vLLM, as a plugin that leaves the engine as it is.

    TOKENPRUNE_POLICY=divprune TOKENPRUNE_KEEP=0.25 vllm serve llava-hf/llava-1.5-7b-hf

The prompt has as many placeholders as visual tokens are kept, from the start: the scheduler, the paged KV
cache, prefix caching and the parallel layouts work with the pruned sequence and know nothing of pruning.
"""

from __future__ import annotations

import os

from .architectures import SERVED

#: Stock architecture -> the class that prunes it, `module:class` as vLLM's registry has it.
ARCHITECTURES = {name: served.path for name, served in SERVED.items()}
#: How a checkpoint asks for pruning by itself, `--hf-overrides '{"architectures": ["Tokenprune..."], ...}'`.
PREFIX = "Tokenprune"


def register() -> None:
    """Entry point `vllm.general_plugins`: called by vLLM in each of its processes, perhaps more than once.

    The classes are registered under names of their own. They take the stock architectures' places only
    where the environment asks for pruning, so that installing this package changes nothing.
    """
    from vllm import ModelRegistry
    from vllm.logger import init_logger

    from . import failures
    from .settings import POLICY, RECIPE

    failures.begin()
    asked = next((name for name in (POLICY, RECIPE) if os.environ.get(name)), None)
    for name, path in ARCHITECTURES.items():
        ModelRegistry.register_model(PREFIX + name, path)
        if asked:
            ModelRegistry.register_model(name, path)
    if asked:
        logger = init_logger("vllm.tokenprune")  # ours has no handler in the engine's processes
        logger.info("visual tokens will be pruned: %s=%s", asked, os.environ[asked])
