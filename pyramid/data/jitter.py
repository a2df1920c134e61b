"""Clips turned, scaled, stretched, sheared and shifted at random: for training on few clips whose meaning none of it
changes. A clip of objects that move left is not one of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# At strength 1, either way: radians, log of the scale, log of the stretch, shear, share of half a side.
_TURN, _SCALE, _STRETCH, _SHEAR, _SHIFT = 0.25, 0.25, 0.15, 0.2, 0.15


def jitter(video: Tensor, strength: float, generator: torch.Generator | None = None) -> Tensor:
    """(B, 3, T, H, W) in [-1, 1], any float dtype -> the same; each clip is moved as one, in all frames alike. What
    comes in from outside repeats the rim. `strength`: 0 for as it is, 1 for up to 14 degrees, 28 % in size, 16 % in
    shape, a shear of 0.2 and 7 % of the sides."""
    if not strength:
        return video
    b, c, t = video.shape[:3]
    draws = (2 * torch.rand(b, 6, generator=generator) - 1) * strength
    turn, shear = _TURN * draws[:, 0], _SHEAR * draws[:, 3]
    scale, stretch = (_SCALE * draws[:, 1]).exp(), (_STRETCH * draws[:, 2]).exp()
    cos, sin = turn.cos() * scale, turn.sin() * scale
    rows = torch.stack([cos * stretch, shear - sin, _SHIFT * draws[:, 4], sin, cos / stretch, _SHIFT * draws[:, 5]])
    flat = video.flatten(1, 2)
    places = nn.functional.affine_grid(rows.T.reshape(b, 2, 3).to(flat), list(flat.shape), align_corners=False)
    moved = nn.functional.grid_sample(flat, places, padding_mode="border", align_corners=False)
    return moved.unflatten(1, (c, t)).clamp(-1, 1)
