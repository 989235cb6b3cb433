"""Optimizers on flat vectors, the learning-rate schedule, clipping."""
