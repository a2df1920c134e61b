"""Tolerances without magic numbers: a result may be off by twice what plain PyTorch is off at the same precision."""

from __future__ import annotations

import torch
from torch import Tensor

from pyramid.ops import reference


def assert_no_worse(got: Tensor, plain: Tensor, truth: Tensor, name: str = "result", floor: float = 1e-6) -> None:
    """Check max |got - truth| <= 2 max |plain - truth| + floor of the truth's size, NaN in the same places.

    Args:
        got: what the op gave. plain: what plain PyTorch gives at the same precision. truth: the same in float64.
        floor: relative to max |truth|; where plain happens to be exact, an op may still round once or twice.
    """
    assert got.shape == truth.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(truth.shape)}"
    if got.numel() == 0:
        return
    truth = truth.double()
    special = ~truth.isfinite()
    got_wide, plain_wide = got.double(), plain.double()
    overflow = truth.isfinite() & ~plain_wide.isfinite() & ~got_wide.isfinite()  # beyond the dtype's range
    assert torch.equal(got_wide[special].isnan(), truth[special].isnan()), f"{name}: NaN in other places"
    plain_of = ~special & ~overflow
    if not plain_of.any():
        return
    error = (got_wide - truth)[plain_of].abs().max().item()
    allowed = 2 * (plain_wide - truth)[plain_of].abs().max().item() + floor * truth[plain_of].abs().max().item()
    assert error <= allowed, f"{name}: off by {error:.3g}, allowed {allowed:.3g}"


def exact_distance(z: Tensor, codebook: Tensor, ids: Tensor) -> Tensor:
    """Squared distance (N,) of each row to its code, in float64."""
    return (z.double() - codebook.double()[ids]).square().sum(-1)


def assert_nearest(ids: Tensor, distance: Tensor, z: Tensor, codebook: Tensor) -> None:
    """Check that each id is as near as the reference's, up to the rounding of float64, and its distance."""
    best = exact_distance(z, codebook, reference.nearest_code(z, codebook)[0])
    got = exact_distance(z, codebook, ids)
    assert (got <= best * (1 + 1e-14)).all()
    assert torch.allclose(distance, got.float(), rtol=1e-6, atol=1e-44)
