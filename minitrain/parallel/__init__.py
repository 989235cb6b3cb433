"""Flat memory and its lifetimes (ZeRO), pipeline schedules, the batch over ranks."""
