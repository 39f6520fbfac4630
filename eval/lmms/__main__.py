"""Prints the folder of our tasks, for `--include_path`."""

import sys

from . import tasks_path

sys.stdout.write(tasks_path() + "\n")
