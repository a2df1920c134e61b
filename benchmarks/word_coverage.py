"""What the words of tokenizers name: python benchmarks/word_coverage.py MODEL... [--clips 256]

For held-out clips of `shapes` mini, from the words of the second chunk: the share of the caption's content words that
some word names, the share of clips of which all are named, and of each attribute the share that is named by its exact
word; beside them the different words among those of a clip, and PSNR at each detail.
"""

from __future__ import annotations

import argparse

import torch

from pyramid.data.grammar import parse
from pyramid.data.shapes import ShapesDataset, preset
from pyramid.metrics import psnr
from pyramid.tokenizer import PyramidTokenizer

ATTRIBUTES = ("size", "colour", "shape", "motion", "background")


def measure(model: str, num_clips: int) -> dict[str, float]:
    tokenizer = PyramidTokenizer.from_pretrained(model)
    c, table = tokenizer.config, tokenizer.table
    world = preset("mini", height=c.height, width=c.width, num_frames=c.num_frames, fps=c.fps)
    rows: dict[str, list[float]] = {}
    for start in range(0, num_clips, 32):
        items = ShapesDataset(world, "val", num_clips).__getitems__(range(start, min(start + 32, num_clips)))
        video = torch.stack([item["video"] for item in items])
        tokens = tokenizer.encode(video)
        for k in range(1, tokenizer.num_levels + 1):
            rows.setdefault(f"psnr {k}", []).extend(psnr(tokenizer.decode(tokens, k), video).tolist())
        for item, clip in zip(items, tokenizer.words(tokens), strict=True):
            words = [word for level in clip[-1] for word in level]
            wanted = {table.words[i] for i in table.content_ids(item["caption"])}
            figures = {"coverage": len(wanted & set(words)) / len(wanted), "all": float(wanted <= set(words))}
            figures["different"] = len(set(words)) / len(words)
            figures |= {kind: float(value in words) for kind, value in parse(item["caption"]).items()}
            for name, value in figures.items():
                rows.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in rows.items()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("models", nargs="+")
    options.add_argument("--clips", type=int, default=256)
    args = options.parse_args()
    for model in args.models:
        figures = measure(model, args.clips)
        details = " ".join(f"{value:.1f}" for name, value in figures.items() if name.startswith("psnr"))
        rest = " ".join(f"{name} {figures[name]:.3f}" for name in ("coverage", "all", "different", *ATTRIBUTES))
        print(f"{model}: {rest}; PSNR {details}", flush=True)


if __name__ == "__main__":
    main()
