"""Figures of the shipped model on held-out clips: seeds never seen, and combinations of attributes never seen.

python benchmarks/default_model.py | tee benchmarks/results/default_model.txt
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from pyramid.data import grammar
from pyramid.data.shapes import ShapesDataset, preset
from pyramid.metrics import psnr, ssim
from tasks.judge import ATTRIBUTES, Judge, agreement, judge_accuracy, wanted
from tasks.models import load_lm, shipped
from tasks.showcase import through_files

BATCH = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=400, help="of each split")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    lm = load_lm()
    tokenizer = lm.tokenizer
    judge = Judge.load(shipped("mini") / "judge")
    details = range(1, lm.num_levels + 1)
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads, seed {arguments.seed}")
    print(f"judge on 1,000 rendered clips: {judge_accuracy(judge, preset('mini'))}")
    for split in ("test", "combinations"):
        items = ShapesDataset(preset("mini"), split).__getitems__(range(arguments.clips))
        truth = [wanted(item["attributes"]) for item in items]
        captions: list[str] = []
        from_files: list[str] = []
        figures = {name: torch.zeros(lm.num_levels) for name in ("psnr", "ssim")}
        rebuilt: dict[int, list[dict[str, str]]] = {k: [] for k in details}
        written: dict[int, list[dict[str, str]]] = {k: [] for k in details}
        seconds = 0.0
        for start in range(0, len(items), BATCH):
            batch = items[start : start + BATCH]
            videos = torch.stack([item["video"] for item in batch])
            tokens = tokenizer.encode(videos)
            captions += lm.caption(tokens)
            with TemporaryDirectory() as folder:
                from_files += lm.caption(tokenizer.encode(through_files(batch, Path(folder), tokenizer)))
            begin = time.perf_counter()
            generated = lm.generate([item["caption"] for item in batch], seed=arguments.seed + start)
            seconds += time.perf_counter() - begin
            for k in details:
                again = tokenizer.decode(tokens, k)
                figures["psnr"][k - 1] += psnr(again, videos).sum() / len(items)
                figures["ssim"][k - 1] += ssim(again, videos).sum() / len(items)
                rebuilt[k] += judge.attributes(again)
                written[k] += judge.attributes(tokenizer.decode(generated, k))
        read = agreement([grammar.parse(text) for text in captions], truth, tuple(ATTRIBUTES))
        read_files = agreement([grammar.parse(text) for text in from_files], truth, tuple(ATTRIBUTES))
        counts = [tokens.num_tokens(k) for k in details]
        print(f"\n{split}: {len(items)} clips")
        print(f"  captions from {counts[lm.config.caption_detail - 1]} of {counts[-1]} tokens: {_row(read)}")
        print(f"  captions of the same clips written as mp4 and read back: {_row(read_files)}")
        for k in details:
            print(
                f"  detail {k}, {counts[k - 1]:3d} tokens: PSNR {figures['psnr'][k - 1]:.2f} dB, "
                f"SSIM {figures['ssim'][k - 1]:.3f}; judged on reconstructions {_row(agreement(rebuilt[k], truth))}; "
                f"on generated clips {_row(agreement(written[k], truth))}"
            )
        print(f"  generation: {seconds / len(items):.3f} s a clip in batches of {BATCH}")


def _row(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in figures.items())


if __name__ == "__main__":
    main()
