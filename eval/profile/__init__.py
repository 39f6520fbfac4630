"""`tokenprune profile`: latency by phase, memory and FLOPs, full and pruned; with vLLM, throughput under load."""
