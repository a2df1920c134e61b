"""Objectives of the tokenizer beyond the quantizers' own: reconstruction, and meaning on the word levels.

The semantic objective gives the words of a chunk the *set* of content words of its caption as targets, matched
one-to-one to the token positions by an optimal assignment (as DETR, 2005.12872, does with boxes). SPAE (2306.17842,
section 3.2) draws each position's target independently, which repeats the easiest word; a set covers the caption.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyramid import ops


def reconstruction_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over pixels in [-1, 1], any shapes that match; scalar."""
    return (prediction.float() - target.float()).square().mean()


def word_set_loss(
    queries: Tensor, targets: list[list[int]], embeddings: Tensor, temperature: float
) -> tuple[Tensor, float]:
    """Cross-entropy of the matched words over the whole vocabulary, and the share of target words hit.

    queries (B, P, E): inputs of the word quantizers of one chunk, all levels; targets: for each clip the ids of its
    content words, any number, may be empty; embeddings (K, E): the frozen table. The probability of word k at a
    position is softmax_k(-|z - e_k|^2 / temperature). With more words than positions each position takes one word.
    """
    queries = queries.float()
    log_norm = ops.code_logsumexp(queries, embeddings, temperature)
    losses, hits, count = [], 0, 0
    with torch.no_grad():
        chosen = ops.nearest_code(queries.detach(), embeddings)[0].tolist()
    for row, words in enumerate(targets):
        if not words:
            continue
        codes = embeddings[torch.tensor(words, device=embeddings.device)]
        distance = (queries[row, :, None] - codes[None]).square().sum(dim=-1)
        nll = distance / temperature + log_norm[row, :, None]
        positions, matched = linear_sum_assignment(nll.detach().cpu().numpy())
        losses.append(nll[torch.from_numpy(positions), torch.from_numpy(matched)].mean())
        hits += len(set(words) & set(chosen[row]))
        count += len(words)
    if not losses:
        return queries.sum() * 0, 0.0
    return torch.stack(losses).sum() / len(targets), hits / count
