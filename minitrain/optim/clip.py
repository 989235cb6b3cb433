"""Clipping by the global norm (Pascanu et al. 2013)."""


def clip_scale(norm: float, clip: float) -> float:
    """The factor for all gradients: min(1, clip / (norm + 1e-6)), as in PyTorch; 1 when clip is 0 (off)."""
    return 1.0 if clip == 0 else min(1.0, clip / (norm + 1e-6))
