"""Objectives of the tokenizer beyond the quantizers' own: reconstruction, and meaning on the word levels.

Four ways of telling the words of a chunk what its clip means, by targets that a teacher gives (`semantic.py`):

- `independent_word_loss`: SPAE's own (2306.17842, section 3.2): each position names any word that scores above its
  level's threshold. Nothing keeps two positions from naming the same one.
- `word_set_loss`: the words that say the clip together are a *set*, matched one-to-one to the positions by an optimal
  assignment (as DETR, 2005.12872, does with boxes): what one position says no other need say.
- `word_phrase_loss`: the same, and words that belong together stand together: each phrase of a caption takes a *group*
  of positions, so that of two things it is said which is red.
- `average_match_loss`: the streaming average of the words said so far is the clip's own vector, told from those of the
  other clips of the batch.

All take the probability of word k at a position with query z as softmax_k(-|z - e_k|^2 / temperature).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyramid import ops

# Shapes: B clips, P positions, K words, E code space, S a teacher's space.


ERROR_FLOOR = 1e-4  # of squared errors of pixels in [-1, 1]: 46 dB, beyond which nothing is gained


def reconstruction_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over clips of log(1 + e / ERROR_FLOOR), e the clip's mean squared error; (B, ...) of pixels in [-1, 1], any
    shapes that match; scalar, at least 0.

    This is PSNR: 10 dB are 2.3 nats, whatever they start from. The mean of the squared errors themselves would be that
    of the few clips drawn at a coarse detail, whose errors are twenty times larger and can't be helped
    (docs/experiments.md).
    """
    errors = (prediction.float() - target.float()).square().flatten(1).mean(dim=1)
    return torch.log1p(errors / ERROR_FLOOR).mean()


def word_set_loss(queries: Tensor, targets: Sequence[Sequence[int]], embeddings: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the matched words over the whole vocabulary, mean over positions, scalar.

    queries (B, P, E): inputs of the word quantizers of one chunk, all levels; targets: for each clip the ids of its
    words, any number, may be empty; embeddings (K, E): the frozen table. With more words than positions each position
    takes one word; with fewer, a position that is left over may say any of them again, so that none says what is not
    so: its part is -log of the probability of the whole set.
    """
    return word_phrase_loss(queries, [[words] for words in targets], embeddings, temperature, groups=())


def word_phrase_loss(
    queries: Tensor,
    phrases: Sequence[Sequence[Sequence[int]]],
    embeddings: Tensor,
    temperature: float,
    groups: Sequence[Sequence[int]],
) -> Tensor:
    """`word_set_loss` for words in phrases: those of one phrase are matched to positions of one group, scalar.

    queries (B, P, E) and embeddings (K, E) as there; phrases: for each clip the ids of the words of each of its
    phrases; groups: positions 0 .. P - 1 that stand together, each in one group at most, coarse ones first. Phrases
    that fill more than half of a group take the coarsest groups, the others, together where there are more of them
    than groups, the next: each the one that says it best, and if it has too few positions, the words that come first.
    What finds no room is matched to the positions outside of the groups taken. A position left over may say again any
    word of its group's phrase, or of the clip where it has none.
    """
    queries = queries.float()
    log_norm = ops.code_logsumexp(queries, embeddings, temperature)
    losses = []
    for row, clip in enumerate(phrases):
        words = [word for phrase in clip for word in phrase]
        if not words:
            continue
        codes = embeddings[torch.tensor(words, device=embeddings.device)]
        distance = (queries[row, :, None] - codes[None]).square().sum(dim=-1)
        nll = distance / temperature + log_norm[row, :, None]
        matched, allowed = _match_phrases(nll.detach().cpu().numpy(), [len(phrase) for phrase in clip], groups)
        mask = torch.from_numpy(allowed).to(nll.device)
        loss = -torch.logsumexp((-nll).masked_fill(~mask, -torch.inf), dim=1)
        positions, chosen = (torch.tensor(part, device=nll.device) for part in zip(*matched, strict=True))
        losses.append(loss.index_put((positions,), nll[positions, chosen]).mean())
    return torch.stack(losses).sum() / len(phrases) if losses else queries.sum() * 0


def _match_phrases(
    cost: np.ndarray, lengths: Sequence[int], groups: Sequence[Sequence[int]]
) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Pairs (position, word), each position and word once; and which words a position may say, (P, W) bool. `cost`
    (P, W), the words of the phrases one after the other, `lengths` of them."""
    num_positions, num_words = cost.shape
    bounds = np.cumsum([0, *lengths])
    spans = [list(range(a, b)) for a, b in itertools.pairwise(bounds.tolist()) if b > a]
    room = max((len(group) for group in groups), default=0)
    long, short = ([s for s in spans if (len(s) > room / 2) == is_long] for is_long in (True, False))
    short.sort(key=len)
    while 1 <= len(groups) - len(long) < len(short) and len(short[0] + short[1]) <= room:
        short = sorted([short[0] + short[1], *short[2:]], key=len)
    pairs: list[tuple[int, int]] = []
    allowed = np.ones((num_positions, num_words), dtype=bool)
    left = list(groups)
    for alike in (long, short):
        taken, left = left[: len(alike)], left[len(alike) :]
        if not alike or not taken:
            continue
        options = [[_match(cost, group, span[: len(group)]) for group in taken] for span in alike]
        best = linear_sum_assignment([[value for value, _ in row] for row in options])
        for phrase, group in zip(*(part.tolist() for part in best), strict=True):
            pairs += options[phrase][group][1]
            allowed[list(taken[group])] = np.isin(np.arange(num_words), alike[phrase])
    outside = [position for position in range(num_positions) if allowed[position].all()]
    rest = sorted(set(range(num_words)) - {word for _, word in pairs})
    return pairs + _match(cost, outside, rest)[1], allowed


def _match(cost: np.ndarray, positions: Sequence[int], words: Sequence[int]) -> tuple[float, list[tuple[int, int]]]:
    """The cheapest pairs of these positions and words, as many as there can be, and what they cost."""
    rows, columns = linear_sum_assignment(cost[np.ix_(positions, words)])
    pairs = [(positions[row], words[column]) for row, column in zip(rows, columns, strict=True)]
    return float(sum(cost[pair] for pair in pairs)), pairs


def independent_word_loss(
    queries: Sequence[Tensor],
    scores: Sequence[Tensor],
    embeddings: Tensor,
    thresholds: Sequence[float],
    temperature: float,
) -> Tensor:
    """Mean over all positions of the cross-entropy to the words above the threshold, scalar.

    queries[l] (B, t, h, w, E) of word level l; scores[l] from 0 to 1: (B, K) for the whole clip, or (B, t, h, w, K) for
    each region; thresholds[l]: the last goes for all levels beyond. SPAE draws one target among those above the
    threshold; this is the expectation over the draw. A position without a target counts as zero.
    """
    losses = []
    for level, (query, score) in enumerate(zip(queries, scores, strict=True)):
        threshold = thresholds[min(level, len(thresholds) - 1)]
        z = query.float().flatten(1, 3)
        if score.ndim > 2:  # each region is a clip of its own
            z, score = z.flatten(0, 1)[:, None], score.flatten(0, 3)
        losses.append(ops.code_cross_entropy(z, embeddings, score, threshold, temperature).flatten())
    return torch.cat(losses).mean()


def average_match_loss(
    queries: Sequence[Tensor],
    targets: Tensor,
    words: Tensor,
    embeddings: Tensor,
    temperature: float,
    contrast: float = 0.1,
) -> Tensor:
    """Cross-entropy (InfoNCE, 1807.03748) of the clip's own vector among those of the batch, given the average of the
    words up to the end of each level; the mean over levels, scalar.

    queries[l] (B, t, h, w, E); targets (B, S): unit vectors in the teacher's space, zero for clips to leave out; words
    (K, S): the table's words there. A word is taken softly, as the mean of `words` by its probability, which forms a
    B P x K matrix: the hard choice has no gradient that tells two positions apart. Clips with the same vector are no
    negatives of each other. The logits are cosines / contrast.
    """
    known = targets.square().sum(dim=1) > 0
    if not bool(known.any()):
        return sum(query.sum() for query in queries) * 0
    targets = targets[known]
    z = torch.cat([query.float().flatten(1, 3) for query in queries], dim=1)[known]
    logits = (2 * z @ embeddings.T - embeddings.square().sum(dim=1)) / temperature  # less |z|^2: the same softmax
    average = (torch.softmax(logits, dim=-1) @ words).cumsum(dim=1)
    own = targets @ targets.T > 1 - 1e-5
    losses, end = [], 0
    for query in queries:
        end += query.shape[1:4].numel()
        similarity = torch.nn.functional.normalize(average[:, end - 1], dim=-1) @ targets.T / contrast
        losses.append(similarity.logsumexp(1) - similarity.masked_fill(~own, -torch.inf).logsumexp(1))
    return torch.stack(losses).mean()


def coverage(ids: Tensor, targets: Sequence[Sequence[int]]) -> float:
    """Share of the target words that some position of the clip names; ids (B, P) int64. 0 without targets."""
    said = [set(row) for row in ids.tolist()]
    hits = sum(len(set(words) & row) for words, row in zip(targets, said, strict=True))
    return hits / max(1, sum(len(set(words)) for words in targets))
