"""Collapse, noticed level by level and said in one sentence: how few codes a level uses, what is on against it, and
what else there is. A level that uses few codes carries few bits, whatever its codebook could hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyramid.metrics import CodeUsage
from pyramid.quantize import BitQuantizer, FSQQuantizer, Quantizer, VectorQuantizer, WordQuantizer

if TYPE_CHECKING:
    from pyramid.train import LossConfig

COLLAPSED, RECOVERED = 0.25, 0.35  # shares of the entropy that a level's tokens could have


class CollapseWarning(UserWarning):
    """A level of the pyramid that has collapsed."""


class CollapseWatch:
    """Asked now and then with the codes counted since the last time. A level is collapsed where their entropy is under
    a quarter of the most that so many tokens of such a codebook can have, twice in a row (a window may be odd); it is
    told of once, and again only after it has recovered."""

    def __init__(self, num_levels: int) -> None:
        self.told = [False] * num_levels
        self._low = [0] * num_levels

    def __call__(self, usage: Sequence[CodeUsage]) -> list[int]:
        """Indices (from 0) of the levels that are collapsed now and were not before."""
        begun = []
        for index, level in enumerate(usage):
            share = fullness(level)
            self._low[index] = self._low[index] + 1 if share < COLLAPSED else 0
            if self._low[index] >= 2 and not self.told[index]:
                self.told[index] = True
                begun.append(index)
            elif share > RECOVERED:
                self.told[index] = False
        return begun

    def state_dict(self) -> dict:
        return {"told": list(self.told), "low": list(self._low)}

    def load_state_dict(self, state: dict) -> None:
        self.told, self._low = list(state["told"]), list(state["low"])


def fullness(usage: CodeUsage) -> float:
    """Entropy of the codes counted, as a share of the most that their number allows; 1 for one token or none."""
    most = min(usage.codebook_size, usage.num_tokens)
    return 1.0 if most < 2 else math.log(max(1.0, usage.compute()["perplexity"])) / math.log(most)


def sentence(index: int, usage: CodeUsage, quantizer: Quantizer, loss: LossConfig) -> str:
    """What is wrong with level `index` (from 0), what is on against it, what to try."""
    used, perplexity = len(usage.counts), usage.compute()["perplexity"]
    on, to_try = _remedies(quantizer, loss)
    if loss.full_detail < 1:
        on.append(f"level dropout, {1 - loss.full_detail:.0%} of clips")
    else:
        to_try.append("level dropout (loss.full_detail below 1)")
    return (
        f"level {index + 1} uses {used:,} of {usage.codebook_size:,} codes (perplexity {perplexity:.1f} over "
        f"{usage.num_tokens:,} tokens); on against it: {', '.join(on) or 'nothing'}; try {' or '.join(to_try)}"
    )


def _remedies(quantizer: Quantizer, loss: LossConfig) -> tuple[list[str], list[str]]:
    """What is on against a collapse of this codebook, and what else there is."""
    if isinstance(quantizer, BitQuantizer):
        if quantizer.entropy <= 0:
            return [], ["an entropy weight (loss.entropy=0.1)"]
        anneals = loss.entropy_boost > 1
        kind = f"annealed from {loss.entropy * loss.entropy_boost:.3g}" if anneals else "not annealed"
        more = [] if anneals else ["annealing (loss.entropy_boost=3)"]
        return [f"entropy weight {quantizer.entropy:.3g}, {kind}"], [*more, f"loss.entropy={2 * loss.entropy:.3g}"]
    if isinstance(quantizer, VectorQuantizer):
        restart = f"dead codes restart after {quantizer.patience:g} expected uses"
        return [restart], ["fewer codes (codebook_size)", "fewer numbers a code (code_dim)"]
    if isinstance(quantizer, WordQuantizer):
        if loss.semantic > 0:
            return [f"semantic weight {loss.semantic:g}"], ["captions with more words"]
        return [], ["a semantic objective (loss.semantic=2)"]
    assert isinstance(quantizer, FSQQuantizer)
    return ["no table to collapse"], ["fewer fsq_levels", "a bits level, which has an entropy objective"]
