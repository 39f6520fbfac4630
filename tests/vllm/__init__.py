"""Tests of the vLLM plugin against the real engine: `make test-vllm`."""
