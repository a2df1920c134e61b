"""Which words stand for a caption: python benchmarks/word_targets.py [--positions 5] [--clips 200]. Needs `make words`.

Text alone, no pixels: for captions of `shapes`, the words that each way of choosing targets gives to the positions of a
chunk. `coverage`: share of the caption's content words that are among them (of as many as there are positions);
`different`: share of them that are not said twice; `cosine` of their sum with the caption's sentence embedding.
`space`: what the words are chosen by, the mean of the caption's content words or its sentence embedding.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable

import torch
from torch import Tensor

from pyramid.data.shapes import ShapesDataset, preset
from pyramid.teachers import TextTeacher, matching_pursuit
from pyramid.text_encoder import TextEncoder
from pyramid.vocabulary import minilm_folder
from pyramid.words import WordTable

Chooser = Callable[[str, Tensor], list[int]]


def independent(scores: Tensor, count: int) -> list[int]:
    """SPAE: each position draws among the words above its level's threshold; the first position is level 1."""
    draws = [(scores >= (0.98 if position == 0 else 0.95)).nonzero().flatten().tolist() for position in range(count)]
    return [random.choice(words) for words in draws]


def streaming_average(target: Tensor, words: Tensor, count: int) -> list[int]:
    """SPAE's quantizer run on the caption's vector: word l is nearest to l times it less the words before."""
    chosen: list[int] = []
    said = torch.zeros_like(target)
    for number in range(1, count + 1):
        distance = (number * target - said - words).square().sum(dim=1)
        distance[chosen] = torch.inf
        chosen.append(int(distance.argmin()))
        said = said + words[chosen[-1]]
    return chosen


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--positions", type=int, default=5)
    options.add_argument("--clips", type=int, default=200)
    args = options.parse_args()
    table, encoder, count = WordTable.load(), TextEncoder(minilm_folder()), args.positions
    sentence = TextTeacher(table, encoder=encoder)
    for world in ("mini", "full"):
        captions = [i["caption"] for i in ShapesDataset(preset(world), "val").describe(range(args.clips))]
        whole = sentence.embed({"caption": captions})
        for space, teacher in (("words", TextTeacher(table)), ("sentence", sentence)):
            choosers: dict[str, Chooser] = {
                "independent draws": lambda text, v, t=teacher: independent(t.scores(v), count),
                "best scores": lambda text, v, t=teacher: t.scores(v).topk(count).indices.tolist(),
                "streaming average": lambda text, v, t=teacher: streaming_average(v, t.words, count),
                "pursuit, whole table": lambda text, v, t=teacher: matching_pursuit(v, t.words, count),
                "first content words": lambda text, v: table.content_ids(text)[:count],
                "set": lambda text, v, t=teacher: t.word_sets({"caption": [text]}, count)[0],
            }
            for name, choose in choosers.items():
                random.seed(0)
                figures = torch.zeros(3)
                for text, vector, target in zip(captions, teacher.embed({"caption": captions}), whole, strict=True):
                    ids, wanted = choose(text, vector), set(table.content_ids(text))
                    said = torch.nn.functional.normalize(table.embeddings[ids].sum(dim=0), dim=0)
                    covered = len(wanted & set(ids)) / min(count, len(wanted))
                    figures += torch.tensor([covered, len(set(ids)) / len(ids), float(said @ target)])
                coverage, different, cosine = (figures / len(captions)).tolist()
                row = f"coverage {coverage:.3f} different {different:.3f} cosine {cosine:.3f}"
                print(f"{world:5} by {space:9} {name:21} {row}", flush=True)


if __name__ == "__main__":
    main()
