"""Draws the picture at the top of the README: one held-out clip, the words read from it, and every prefix decoded.

python examples/pyramid_picture.py docs/pyramid.png
"""

from __future__ import annotations

import sys
import textwrap

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from pyramid.data.shapes import ShapesDataset, preset
from pyramid.data.transforms import to_uint8
from tasks.models import load_tokenizer

CLIP = 3  # of the test split
FRAMES = (0, 4, 8, 12, 16)


def main(path: str) -> None:
    tokenizer = load_tokenizer("shapes")
    item = ShapesDataset(preset("full"), "test")[CLIP]
    video = item["video"][None]
    tokens = tokenizer.encode(video)
    rows: list[tuple[str, torch.Tensor]] = []
    words = tokenizer.words(tokens)[0][-1]
    for k in range(1, tokenizer.num_levels + 1):
        kind = tokenizer.config.levels[k - 1].codebook
        said = " ".join(f"“{word}”" for word in words[k - 1]) if k <= len(words) else f"{kind}, decoded with all above"
        label = textwrap.fill(f"level {k}: {said}", 44)
        rows.append((f"{label}\n{tokens.num_tokens(k)} of {tokens.num_tokens()} tokens", tokenizer.decode(tokens, k)))
    rows.append((textwrap.fill(f"the clip: {item['caption']}", 34), video))
    figure, axes = plt.subplots(len(rows), len(FRAMES), figsize=(1.15 * len(FRAMES) + 4.2, 1.15 * len(rows)))
    for (label, clip), line in zip(rows, axes, strict=True):
        frames = to_uint8(clip[0]).numpy()
        for axis, frame in zip(line, FRAMES, strict=True):
            axis.imshow(frames[frame], interpolation="nearest")
            axis.set_axis_off()
        line[0].text(-0.15, 0.5, label, transform=line[0].transAxes, ha="right", va="center", fontsize=10)
    figure.subplots_adjust(left=0.46, right=0.995, top=0.99, bottom=0.01, wspace=0.05, hspace=0.08)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "docs/pyramid.png")
