"""From episode outcomes to returns."""

from __future__ import annotations

import numpy as np


def completion_returns(success: np.ndarray, chunks: np.ndarray, decay: float) -> np.ndarray:
    """Sparse success, worth less the later it comes: ``R_i = decay^d_i`` on success at chunk ``d_i``, 0 on failure.

    Args:
        success: bool ``[G]``, whether each member succeeded.
        chunks: int ``[G]``, number of chunks that each member executed (1 for a success inside the first chunk).
        decay: Factor per chunk in (0, 1]; 1 gives the plain sparse reward.

    Returns:
        float64 ``[G]`` in [0, 1].

    Source: Z-1 (arXiv 2606.31846), success-aware reward decay.
    """
    if not 0.0 < decay <= 1.0:
        raise ValueError(f"decay must lie in (0, 1], got {decay}")
    return np.where(success, decay ** chunks.astype(np.float64), 0.0)
