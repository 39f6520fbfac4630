"""Kernels in the real compilers, for GPUs that need not be there. The files beside it test what they compute."""

import importlib.util
import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs triton")


@pytest.mark.parametrize("target", ["cuda 90", "hip gfx942"])
def test_every_kernel_compiles_and_fits(target):
    """The interpreter takes what compilers refuse, and knows no limits of shared memory.

    `python -m tests.ops.compiling cuda 100` tries another.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.compiling", *target.split()], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    kernels = {}
    for kernel in result["kernels"]:
        kernels.setdefault(kernel["name"], []).append(kernel)
    greedy = {"_norms", "_similarities", "_greedy", "_volume", "_gains", "_cover"}
    assert kernels.keys() == greedy | {"_topk_gather", "_denominators", "_received"}
    for label, launches in result["launches"].items():
        assert launches == {"topk_gather": 1, "coverage": 30, "attention": 2}.get(label.split()[0], 3), label
    if target.startswith("cuda"):
        # scores and similarities of the loop stay in registers
        assert not any(kernel["LDL"] or kernel["STL"] for kernel in kernels["_greedy"])
    if target == "cuda 90":  # on tensor cores, but for float32
        assert sum(kernel["HGMMA"] > 0 for kernel in kernels["_similarities"]) == len(kernels["_similarities"]) - 1
        assert any(kernel["HGMMA"] for kernel in kernels["_denominators"])
