"""How like the captions of real clips are to what people said of them, and whether the right text is found among
others: `score_texts`. Rows of plain values, beside what looks at no clip, or learns nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lm.model import PyramidLM
    from pyramid.tokens import TokenPyramid

Row = dict[str, Any]
AMONG = 20  # texts that the right one is looked for in
_BATCH = 16


def score_texts(
    lm: PyramidLM,
    tokens: TokenPyramid,
    captions: Sequence[str],
    learned: Sequence[str],
    nearest: Sequence[str],
    detail: int,
    seed: int = 0,
) -> list[Row]:
    """Captions of N clips by the model at a detail: `exact` (the same text), `verb` (the first word right), BLEU, chrF
    (sacreBLEU's, 0 to 100), ROUGE-L (F1), and `found`: how often the model finds the clip's own caption the likeliest
    of `AMONG`, 19 of other clips with another one; of all there are, where there are fewer. Beside it: the most
    frequent caption of the training clips (`learned`), and `nearest`, that of the training clip with the nearest
    codes."""
    said = []
    for start in range(0, len(captions), _BATCH):
        said += lm.caption(tokens[slice(start, start + _BATCH)], detail)
    usual = Counter(text for text in learned if text).most_common(1)[0][0]
    rows = [{"of": "most frequent caption", **likeness([usual] * len(captions), captions)}]
    rows.append({"of": "nearest code's caption", **likeness(nearest, captions)})
    rows.append({"of": "captions", "detail": detail, **likeness(said, captions)})
    return [*rows[:-1], rows[-1] | _found(lm, tokens, captions, detail, seed)]


def likeness(said: Sequence[str], truth: Sequence[str]) -> Row:
    """Of texts to the one reference each; case and the full stop at the end count for nothing. Raises ImportError with
    a hint where torchmetrics is not installed."""
    try:
        from torchmetrics.functional.text import chrf_score, sacre_bleu_score
    except ImportError:
        raise ImportError("evaluate understanding: BLEU needs torchmetrics: pip install torchmetrics") from None
    pairs = [(plain(a), plain(b)) for a, b in zip(said, truth, strict=True)]
    ours, theirs = [a for a, _ in pairs], [[b] for _, b in pairs]
    return {
        "exact": _mean([a == b for a, b in pairs]),
        "verb": _mean([a.split()[:1] == b.split()[:1] for a, b in pairs]),
        "bleu": 100 * float(sacre_bleu_score(ours, theirs, smooth=True)),
        "chrf": 100 * float(cast(Tensor, chrf_score(ours, theirs))),
        "rouge_l": _mean([rouge_l(a, b) for a, b in pairs]),
        "distinct": len(set(ours)),
    }


def plain(text: str) -> str:
    return text.lower().strip().rstrip(".")


def rouge_l(said: str, truth: str) -> float:
    """F1 of the longest common subsequence of words (Lin, "ROUGE", 2004, section 3).

    >>> rouge_l("put the red cup down", "put the cup on the table")
    0.5454545454545454
    """
    a, b = said.split(), truth.split()
    row = [0] * (len(b) + 1)
    for word in a:
        last = 0
        for place, other in enumerate(b, start=1):
            last, row[place] = row[place], last + 1 if word == other else max(row[place], row[place - 1])
    common = row[-1]
    return 2 * common / (len(a) + len(b)) if common else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _found(lm: PyramidLM, tokens: TokenPyramid, captions: Sequence[str], detail: int, seed: int) -> Row:
    """How often the own caption is the likeliest of its list, and by chance; nothing where all are the same. A text
    that is likely whatever the clip is no answer: its mean log-likelihood over all clips is taken away."""
    captions = [_writable(lm, caption) for caption in captions]
    texts = sorted(set(captions))
    if len(texts) < 2:
        return {}
    parts = [lm.log_likelihoods(tokens[slice(i, i + 1)], texts, detail=detail).cpu() for i in range(len(captions))]
    likely = torch.cat(parts)
    likely = likely - likely.mean(dim=0)
    generator, right = torch.Generator().manual_seed(seed), []
    for row, caption in enumerate(captions):
        own = texts.index(caption)
        others = torch.tensor([place for place in range(len(texts)) if place != own])
        drawn: Tensor = others[torch.randperm(len(others), generator=generator)[: AMONG - 1]]
        right.append(bool(likely[row, own] > likely[row, drawn].max()))
    return {"found": _mean(right), "found_by_chance": 1 / min(AMONG, len(texts))}


def _writable(lm: PyramidLM, text: str) -> str:
    """As much of a text as the model can write."""
    most = kept = lm.config.max_text - 1
    while len(ids := lm.text_ids(text)) > most:
        text, kept = lm.text.decode(ids[:kept]), kept - 1
    return text
