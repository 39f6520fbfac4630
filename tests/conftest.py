"""Small models: one thread each is faster than two, and leaves room for others."""

import os

for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(threads, "1")

import torch  # noqa: E402

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before any kernel is imported


def pytest_collection_modifyitems(items):
    """The slowest files first, so that no process is left alone with them at the end."""
    slow = ("test_ops.py", "test_kernels.py", "test_minivlm.py")
    items.sort(key=lambda item: not item.path.name.endswith(slow))
