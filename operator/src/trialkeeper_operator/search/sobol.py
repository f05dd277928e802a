"""Scrambled Sobol points by index. Optuna's own sampler repeats points when it is rebuilt; this cannot."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.stats import qmc


@lru_cache(maxsize=64)
def _block(dimensions: int, seed: int, block: int, size: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    sampler = qmc.Sobol(dimensions, scramble=True, rng=np.random.default_rng(seed))
    if block:
        sampler.fast_forward(block * size)
    points: np.ndarray[tuple[int, int], np.dtype[np.float64]] = sampler.random(size)
    return points


def coordinates(dimensions: int, seed: int, index: int, size: int = 64) -> list[float]:
    """Point `index` of the sequence of `seed`; points are made `size` at a time and kept."""
    block, row = divmod(index, size)
    return [float(u) for u in _block(dimensions, seed, block, size)[row]]
