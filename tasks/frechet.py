"""The Fréchet distance between two sets of features, each taken for a Gaussian: how far made clips are, as a set, from
real ones (Heusel et al. 2017, 1706.08500, for images; Unterthiner et al. 2018, 1812.01717, for video).

The figure means nothing without its features: print `weights_hash` of their network beside it, and compare figures of
one hash and of equally many clips only (fewer clips make it larger).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), of the means m and the covariances S (divided by N - 1), as
    Heusel et al. 2017 (1706.08500) have it for images and Unterthiner et al. 2018 (1812.01717) for video.

    The trace of the root is that of (R S_b R)^(1/2), R the root of S_a: symmetric, so eigenvalues give it, of singular
    covariances too (fewer rows than features).

    Args:
        a: (N, F), any floating dtype; worked on in float64.
        b: (M, F).

    Returns:
        The distance, 0 or more; squared, as is usual.

    Raises:
        ValueError: not two matrices, fewer than two rows, different F, or a value that is not finite.
    """
    for rows in (a, b):
        if rows.dim() != 2 or len(rows) < 2:
            raise ValueError(f"frechet_distance: expected features (N, F) of 2 rows or more, got {tuple(rows.shape)}")
        if not rows.isfinite().all():
            raise ValueError("frechet_distance: expected finite features, got some that are not")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"frechet_distance: expected as many features in both, got {a.shape[1]} and {b.shape[1]}")
    (mean_a, covariance_a), (mean_b, covariance_b) = _moments(a), _moments(b)
    values, vectors = torch.linalg.eigh(covariance_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * cross
    return max(0.0, distance.item())


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    rows = rows.detach().double()
    mean = rows.mean(dim=0)
    centred = rows - mean
    return mean, centred.T @ centred / (len(rows) - 1)


def weights_hash(folder: str | Path) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of `folder`/model.safetensors. Raises FileNotFoundError."""
    return hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()[:12]
