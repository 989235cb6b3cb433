"""Clipping by the global norm (Pascanu et al. 2013)."""


def clip_scale(norm: float, clip: float) -> float:
    """min(1, clip / (norm + 1e-6)), the factor for all gradients; 1 when clip is 0 (off). PyTorch's formula."""
    return 1.0 if clip == 0 else min(1.0, clip / (norm + 1e-6))
