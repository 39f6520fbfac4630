"""Threads, the order of files, shared fixtures, and a summary of what was skipped because something is missing."""

import os
import re
import signal
from collections import defaultdict

for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # small models: one thread each is faster than two
    os.environ.setdefault(threads, "1")

import pytest  # noqa: E402
import torch  # noqa: E402

from tokenprune.plugins import use_builtin_only  # noqa: E402

use_builtin_only()  # the tables of the tests are about what this package has, whatever else is installed
torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before any kernel is imported


#: Reasons that name what is missing on this machine, unlike those of older versions of transformers.
MISSING = re.compile(r"needs |could not import ")
#: Slow tests go first, so that no process is left alone with one of them at the end.
SLOW = ("/tests/ops/", "/tests/eval/")


def pytest_configure():
    """Let tests interrupt processes even where this one ignores interrupts, as in the background of a shell."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not any(folder in item.path.as_posix() for folder in SLOW))


def pytest_terminal_summary(terminalreporter):
    """Name every test that was skipped for want of a browser, a compiler, a GPU, a package, ..."""
    skipped = defaultdict(list)
    for report in terminalreporter.getreports("skipped"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple | list) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if MISSING.match(reason):
            skipped[reason].append(report.nodeid)
    if skipped:
        terminalreporter.section("not tested here, because something is missing", yellow=True)
    for reason, tests in sorted(skipped.items()):
        terminalreporter.write_line(reason, yellow=True)
        for test in sorted(tests):
            terminalreporter.write_line(f"    {test}")


@pytest.fixture(scope="session")
def deep():
    """A LLaVA with a deeper vision tower."""
    from .support.towers import deep_llava

    return deep_llava()


@pytest.fixture
def plugins():
    """What other packages have declared is read."""
    use_builtin_only(False)
    yield
    use_builtin_only()
