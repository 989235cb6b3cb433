"""Formulas: forward and backward of each operation, side by side, without communication."""
