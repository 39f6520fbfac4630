"""Compiles the kernels for a GPU that need not be there: `python -m tests.ops.compiling cuda 90`.

Everything up to the machine code is Triton's own; only loading and launching are left out. Writes, as JSON, each
kernel with its shared memory and the instructions it is made of, and how many launches each op took.
"""

import json
import os
import re
import subprocess
import sys
import tempfile

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

from tokenprune.ops import (
    attention_received,
    coverage_select,
    dpp_select,
    implementation,
    max_min_select,
    max_sum_select,
    topk_gather,
)

#: Shared memory of a block in bytes, and lanes of a warp.
TARGETS = {
    ("cuda", "89"): (101376, 32),
    ("cuda", "90"): (232448, 32),
    ("cuda", "100"): (232448, 32),
    ("hip", "gfx942"): (65536, 64),
}
INSTRUCTIONS = ("HGMMA", "LDL", "STL")  # matrix products on Hopper; registers spilled


class Absent(DriverBase):
    """Of a GPU that is not there."""

    def __init__(self, backend: str, arch: str):
        self.shared, lanes = TARGETS[backend, arch]
        self.target = GPUTarget(backend, int(arch) if arch.isdigit() else arch, lanes)
        self.kernels, self.launches = [], 0
        self.utils = self

    @classmethod
    def is_active(cls):
        return True

    def map_python_to_cpp_type(self, ty):
        return ty

    def get_current_target(self):
        return self.target

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_benchmarker(self):
        raise NotImplementedError

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_device_properties(self, device):
        return {"max_shared_mem": self.shared}

    def load_binary(self, name, binary, shared, device):
        found = self.disassembled(binary) if self.target.backend == "cuda" else {}
        self.kernels.append({"name": name, "shared": shared, **found})
        return 1, 1, 0, 0, 1024  # a module, a function, registers, spills, most threads

    @staticmethod
    def disassembled(binary):
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(binary)
            file.flush()
            code = subprocess.run(
                [triton.knobs.nvidia.nvdisasm.path, "-c", file.name], check=True, capture_output=True, text=True
            ).stdout
        return {name: len(re.findall(rf"\b{name}\b", code)) for name in INSTRUCTIONS}

    def unload_module(self, module):
        pass

    def launcher_cls(self, source, metadata):
        def launch(*args):
            self.launches += 1

        return launch


def calls():
    """Every op as models call it, by label."""
    for n, k, dtype in ((576, 64, torch.bfloat16), (2880, 288, torch.bfloat16), (576, 64, torch.float32)):
        x = torch.zeros(2, n, 4096, dtype=dtype)
        yield f"max_min {n} {dtype}", lambda x=x, k=k: max_min_select(x, k)
    x, mask = torch.zeros(2, 300, 896, dtype=torch.float16), torch.ones(2, 300, dtype=torch.bool)
    first = torch.zeros(2, dtype=torch.int64)
    yield "max_sum masked", lambda: max_sum_select(x, 30, first, mask)
    yield "max_min with lengths", lambda: max_min_select(x, 30, first, mask, 0.75)
    scores, positions = torch.zeros(2, 300), torch.zeros(3, 2, 300, dtype=torch.int64)
    yield "topk_gather", lambda: topk_gather(scores, x, 30, mask, positions)
    yield "dpp", lambda: dpp_select(x, scores, 30, mask)
    yield "dpp 2880", lambda: dpp_select(torch.zeros(1, 2880, 896, dtype=torch.float16), torch.zeros(1, 2880), 288)
    yield "coverage", lambda: coverage_select(torch.zeros(2, 300, 300), 30, scores, mask)
    for width, dtype in ((64, torch.bfloat16), (80, torch.bfloat16), (1024, torch.bfloat16), (128, torch.float32)):
        query, key = torch.zeros(2, 4, 577, width, dtype=dtype), torch.zeros(2, 2, 577, width, dtype=dtype)
        yield f"attention {width} {dtype}", lambda q=query, k=key: attention_received(q, k)
    rows, seen = torch.zeros(2, 577, dtype=torch.bool), torch.ones(2, 577, 577, dtype=torch.bool)
    yield "attention weighted", lambda: attention_received(query, key, rows, seen)
    yield "attention of the last", lambda: attention_received(query, key, torch.tensor([576]), rows)


def main():
    absent = Absent(*sys.argv[1:])
    if absent.target.backend == "hip":
        torch.version.hip = "7.0"  # what a build of torch for these devices says
    driver.set_active(absent)
    launches = {}
    with implementation("triton"):
        for label, call in calls():
            absent.launches = 0
            call()
            launches[label] = absent.launches
    json.dump({"kernels": absent.kernels, "launches": launches}, sys.stdout)


if __name__ == "__main__":
    main()
