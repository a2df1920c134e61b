"""Linear probes: what can be read from the codes of the levels up to k, by a fixed protocol.

Features of a clip (`code_features`), level by level: the code vector of every token, in place; grids of more than 4x4
cells are averaged down to 4x4; all chunks side by side; a level of more than 1,024 numbers is hashed to 1,024 (each
number, with a fixed random sign, is added to a fixed random place: Weinberger et al. 2009, 0902.2206), which keeps
inner products but for noise. The probe (`fit_probe`): features standardised, multinomial logistic regression with an
L2 penalty that a held-out fifth of the training clips chooses (Alain & Bengio 2016, 1610.01644, on linear probes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyramid.tokenizer import PyramidTokenizer
from pyramid.tokens import TokenPyramid

# Shapes: N clips, D features, C classes; t h w grid of a level, E numbers of a code.

MAX_SIDE = 4  # cells of a level's grid along height and width
MAX_FEATURES = 1024  # numbers of a level
STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3)  # of the L2 penalty, strongest first
MAX_ITERATIONS = 100  # of L-BFGS at each strength
_HASH_SEED = 2306


@torch.no_grad()
def code_features(tokenizer: PyramidTokenizer, tokens: TokenPyramid) -> list[Tensor]:
    """What a probe sees of each level of the tokens: float32 (N, D) a level. Those of a detail k are the first k, side
    by side. Clips of the same size and length give the same D."""
    features = []
    for index in range(tokens.num_levels):
        quantizer = tokenizer.levels.levels[index].quantizer
        parts = []
        for levels in tokens.ids:
            codes = quantizer.ids_to_codes(levels[index].to(tokenizer.device)).movedim(-1, 1).float()  # N E t h w
            t, h, w = codes.shape[2:]
            if max(h, w) > MAX_SIDE:
                codes = nn.functional.adaptive_avg_pool3d(codes, (t, min(h, MAX_SIDE), min(w, MAX_SIDE)))
            parts.append(codes.flatten(1))
        features.append(_hashed(torch.cat(parts, dim=1), MAX_FEATURES, seed=_HASH_SEED + index))
    return features


def _hashed(features: Tensor, size: int, seed: int) -> Tensor:
    """(N, D) -> (N, size) where D is larger: signed sums of as equal numbers of features as can be."""
    dim = features.shape[1]
    if dim <= size:
        return features
    generator = torch.Generator().manual_seed(seed)
    place = torch.randperm(dim, generator=generator).to(features.device) % size
    sign = torch.randint(0, 2, (dim,), generator=generator).to(features) * 2 - 1
    return features.new_zeros(len(features), size).index_add_(1, place, features * sign)


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """`mean`, `scale` (D,): what standardises a feature; `weight` (D, C), `bias` (C,); `strength`: the L2 penalty."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    strength: float

    def predict(self, features: Tensor) -> Tensor:
        """features (N, D) -> class int64 (N,)"""
        return ((features - self.mean) * self.scale @ self.weight + self.bias).argmax(dim=1)

    def accuracy(self, features: Tensor, classes: Tensor) -> float:
        return (self.predict(features) == classes).float().mean().item()


def fit_probe(
    features: Tensor,
    classes: Tensor,
    num_classes: int,
    *,
    generator: torch.Generator,
    strengths: Sequence[float] = STRENGTHS,
    held_out: float = 0.2,
) -> LinearProbe:
    """Fit a probe on features (N, D) float32 and classes (N,) int64 from 0 to num_classes - 1.

    The share `held_out` of the clips, drawn by `generator`, chooses among the `strengths` of mean cross-entropy +
    strength / 2 * |weight|^2, from the strongest on until accuracy falls, the stronger one in a tie; the probe is then
    fitted on all clips with it. Deterministic for a generator's seed on one machine.

    Raises ValueError for fewer than two clips, shapes that do not go together, or a class out of range.
    """
    count = len(features)
    if features.dim() != 2 or classes.shape != (count,) or count < 2:
        found = f"{tuple(features.shape)} and {tuple(classes.shape)}"
        raise ValueError(f"fit_probe: expected features (N, D) and classes (N,) of two clips or more, got {found}")
    if not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
        found = f"{int(classes.min())} to {int(classes.max())}"
        raise ValueError(f"fit_probe: expected classes from 0 to {num_classes - 1}, got {found}")
    order = torch.randperm(count, generator=generator).to(features.device)
    aside = min(count - 1, max(1, round(held_out * count)))
    judged, fitted = order[:aside], order[aside:]
    best, best_accuracy, start = None, -1.0, None
    for strength in sorted(strengths, reverse=True):
        probe = _fit(features[fitted], classes[fitted], num_classes, strength, start)
        start = (probe.weight, probe.bias)  # the path from strong to weak starts each fit near its end
        accuracy = probe.accuracy(features[judged], classes[judged])
        if accuracy < best_accuracy:
            break  # weaker ones would fit more of what the held-out clips do not share, and take longest
        if accuracy > best_accuracy:
            best, best_accuracy = probe, accuracy
    assert best is not None
    return _fit(features, classes, num_classes, best.strength, (best.weight, best.bias))


def _fit(
    features: Tensor, classes: Tensor, num_classes: int, strength: float, start: tuple[Tensor, Tensor] | None
) -> LinearProbe:
    """The minimum of the penalised cross-entropy by L-BFGS; it is convex, so `start` only saves time."""
    mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
    scale = torch.where(std > 1e-6 * (1 + mean.abs()), 1 / std.clamp(min=1e-30), torch.zeros_like(std))
    x = (features - mean) * scale  # a feature that never changes is 0
    if start is None:
        start = (x.new_zeros(x.shape[1], num_classes), x.new_zeros(num_classes))
    weight, bias = (part.clone().requires_grad_() for part in start)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_ITERATIONS,
        history_size=10,
        tolerance_grad=1e-5,
        tolerance_change=1e-6,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(x @ weight + bias, classes) + strength / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return LinearProbe(mean, scale, weight.detach(), bias.detach(), strength)
