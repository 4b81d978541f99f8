"""The sources that many numbers share, as they are quoted in the profiles."""

from __future__ import annotations

LLAMA_TABLES = "https://github.com/XiongjieDai/GPU-Benchmarks-on-LLM-Inference (Llama 3 8B and 70B, llama.cpp 2024-05)"
SWEEP_5060TI = "https://inventivehq.com/blog/vram-offload-cliff-gpu-layers-benchmark (series S05)"
SWEEP_4090 = "https://github.com/ikawrakow/ik_llama.cpp/issues/255"
PAPER = "https://arxiv.org/abs/2605.19593"
BATCH_SOURCES = "https://github.com/ggml-org/llama.cpp pull requests 3776, 7676 and 15802"
OWN_CPU = "own measurement, llama.cpp on one thread of an AMD EPYC Zen 4, models of 0.1-3 B"
GIB = 2**30
KV_SWEEP = "https://github.com/TheCascadian/Oddly-llama.cpp/blob/HEAD/local-tune/TRIALS.md (series S21, S21d)"
