"""How often a policy has failed on a picture, for all processes of an engine on one machine.

A picture on which a policy fails keeps evenly spaced tokens, and the engine's caches take them for the policy's choice.
They are found by a hash that the processes which write prompts compute, while policies run in others. So failures are
counted in a file that all of them find, and the count is part of the hash of later pictures: nothing that was computed
before a failure is found after it.
"""

from __future__ import annotations

import atexit
import os
import tempfile
import uuid
from pathlib import Path

#: Names the file. The first process of an engine sets it, and the others inherit it.
_ENGINE = "_TOKENPRUNE_ENGINE"


def begin() -> None:
    """Name the file, unless a parent process has done so."""
    if _ENGINE not in os.environ:
        os.environ[_ENGINE] = uuid.uuid4().hex
        atexit.register(_remove, os.getpid())


def count() -> int:
    """Failures so far."""
    path = _path()
    try:
        return 0 if path is None else path.stat().st_size
    except FileNotFoundError:
        return 0


def add() -> None:
    """Count one more."""
    path = _path()
    if path is not None:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, b".")
        finally:
            os.close(descriptor)


def _path() -> Path | None:
    """None in a process that is not of an engine."""
    engine = os.environ.get(_ENGINE)
    return None if engine is None else Path(tempfile.gettempdir()) / f"tokenprune-failures-{engine}"


def _remove(process: int) -> None:
    path = _path()
    if path is not None and os.getpid() == process:
        path.unlink(missing_ok=True)
