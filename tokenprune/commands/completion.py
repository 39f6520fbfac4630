"""`tokenprune completion`."""

from __future__ import annotations

import argparse
import shlex
import sys

from . import arguments

#: Per shell, the line that turns completion on, and the file that it goes to.
_LINES = {
    "bash": ('eval "$({} tokenprune)"', "~/.bashrc"),
    "zsh": ('eval "$({} --shell zsh tokenprune)"', "~/.zshrc, after compinit"),
    "fish": ("{} --shell fish tokenprune | source", "~/.config/fish/config.fish"),
}


def add(commands: arguments.Commands) -> None:
    """Add the command."""
    completion = arguments.add_command(
        commands,
        "completion",
        help="print the line that makes a shell complete commands, options, policies and models",
        description="Print the line that makes a shell complete commands, options, and names of policies and models. "
        "Put it where it says, for example: tokenprune completion bash >> ~/.bashrc",
    )
    completion.add_argument("shell", choices=tuple(_LINES), help="which shell")
    completion.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    line, file = _LINES[args.shell]
    register = f"{shlex.quote(sys.executable)} -m argcomplete.scripts.register_python_argcomplete"
    sys.stdout.write(f"{line.format(register)}  # in {file}\n")
