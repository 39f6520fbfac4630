"""Serves the page until Ctrl-C."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import socket
import tempfile
import threading
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ..errors import CommandError
from ..machine import pick_device, pick_dtype

if TYPE_CHECKING:
    import gradio as gr

    from .page import Start
    from .session import Session

_STYLE, _SCRIPT = (Path(__file__).parent / f"page.{kind}" for kind in ("css", "js"))
_PORTS = range(7860, 7960)  # of which the first free one is taken


def require_gradio() -> None:
    """Raise `CommandError` if Gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise CommandError("the playground needs Gradio: pip install '.[play]' in a checkout of tokenprune")


def free_port(host: str, port: int | None) -> int:
    """The port, if it can be listened on; None: the first of 7860 to 7959 that can.

    Raises:
        CommandError: it cannot, or the host is no address of this machine.
    """
    for candidate in _PORTS if port is None else (port,):
        try:
            with socket.create_server((host, candidate), family=_family(host)):
                return candidate
        except OSError as error:
            last = error
    ports = f"ports {_PORTS[0]} to {_PORTS[-1]}" if port is None else f"port {port}"
    raise CommandError(
        f"cannot listen on {ports} of {host}: {os.strerror(last.errno) if last.errno else last}; see --port and --host"
    )


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _chosen(text: str) -> tuple[tuple[str, ...], str]:
    """Policies and their options as on the page, for a composition as on the command line."""
    from .choices import chosen

    try:
        return chosen(text)
    except ValueError as error:
        raise CommandError(f"--policy {text}: {error}") from error


def _check(session: Session, start: Start) -> None:
    """Answer the first example: what cannot run is said before the page opens, and the first answer is quick."""
    from .choices import setting

    first = session.examples[0]
    try:
        session.compare(first.picture, first.question, setting(*dataclasses.astuple(start)))
    except (ValueError, TypeError) as error:
        raise CommandError(" ".join(str(error).split())) from error


@contextlib.contextmanager
def _own_folder() -> Iterator[None]:
    """A folder of this run for uploaded and drawn pictures, unless GRADIO_TEMP_DIR names one."""
    if "GRADIO_TEMP_DIR" in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="tokenprune-play-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["GRADIO_TEMP_DIR"]


@contextlib.contextmanager
def served(options: Namespace) -> Iterator[gr.Blocks]:
    """The page, served while the block runs.

    Args:
        options: of the command line.

    Raises:
        CommandError: Gradio is missing, the port is taken, or the model or what is chosen at first cannot be used.
    """
    require_gradio()
    port = free_port(options.host, options.port)
    names, of_policies = _chosen(options.policy)
    with _own_folder():  # Gradio reads the variable when it is imported
        from . import page
        from .session import Session

        device = pick_device(options.device)
        session = Session(options.model, pick_dtype(options.dtype, device), device, options.new_tokens)
        start = page.Start(names, of_policies, options.keep, options.positions)
        _check(session, start)
        blocks = page.build(session, start)
        blocks.launch(
            server_name=f"[{options.host}]" if ":" in options.host else options.host,
            server_port=port,
            share=options.share,
            inbrowser=not options.no_browser,
            prevent_thread_lock=True,
            quiet=True,
            theme=page.theme(),
            css=_STYLE.read_text(),
            js=_SCRIPT.read_text(),
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            enable_monitoring=False,
            max_file_size="64mb",
        )
        try:
            yield blocks
        finally:
            blocks.close(verbose=False)


def run(options: Namespace, console: Console) -> None:
    """Serve the page, print its address, and wait for Ctrl-C."""
    with served(options) as blocks:
        console.print(f"Playground: {blocks.local_url} (Ctrl-C ends it)", highlight=False, soft_wrap=True)
        if blocks.share_url:
            console.print(f"Public address: {blocks.share_url}", highlight=False, soft_wrap=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
