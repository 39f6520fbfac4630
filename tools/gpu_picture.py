"""Draws docs/gpu.png from the committed results of `scripts/gpu.sh`: `python -m tools.gpu_picture`."""

import json
from pathlib import Path

from matplotlib.figure import Figure

from tokenprune.eval.setting import label

_ROOT = Path(__file__).parents[1]
_RESULTS = {
    "LLaVA-1.5-7B, 8 pictures": "profile-llava-1.5-7b-batch-8-cuda",
    "LLaVA-1.5-7B, 1 picture": "profile-llava-1.5-7b-batch-1-cuda",
    "Qwen2.5-VL-7B, 1008 x 1008": "profile-qwen2.5-vl-7b-cuda",
    "Qwen3-VL-8B, 1008 x 1008": "profile-qwen3-vl-8b-cuda",
}


def main() -> None:
    """One panel per model: milliseconds to the first token by the clock, and those in which the GPU computes."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(2, 2).flat
    for axes, (title, name) in zip(panels, _RESULTS.items(), strict=True):
        results = json.loads((_ROOT / "eval" / "results" / f"{name}.json").read_text())
        rows = results["rows"]
        names = [label(row["policy"], row["keep"]) for row in rows]
        axes.barh(names, [row["ttft_ms"] for row in rows], color="0.85", label="by the clock")
        axes.barh(names, [row["ttft_gpu_ms"] for row in rows], color="#fc8d62", height=0.5, label="the GPU computes")
        for i, row in enumerate(rows[1:], 1):
            times = rows[0]["ttft_gpu_ms"] / row["ttft_gpu_ms"]
            axes.text(row["ttft_gpu_ms"], i, f" {times:.1f} x", va="center", fontsize="small")
        axes.invert_yaxis()
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("ms to the first token")
    figure.axes[0].legend(fontsize="small", loc="lower right")
    figure.suptitle("Full and pruned, random weights, bfloat16, NVIDIA H200; x: GPU time of the full model over that")
    figure.savefig(_ROOT / "docs" / "gpu.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
