"""Optimizers and the judgement of a step as CUDA kernels."""
