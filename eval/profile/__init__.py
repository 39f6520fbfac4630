"""`tokenprune profile`: latency by phase, memory and FLOPs, full and pruned; with vLLM, throughput under load."""

#: Published models whose shapes `shapes.py` has.
CONFIGS = ("llava-1.5-7b", "llava-next-7b", "llava-onevision-7b", "qwen2.5-vl-7b", "qwen3-vl-2b", "qwen3-vl-8b")
