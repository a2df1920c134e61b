"""Tokenizers that differ in one thing, trained alike: the same clips, minutes, optimizer and seed, one after the other.

    python benchmarks/tokenizer_variants.py -c small --minutes 6 \
        --variant pyramid --variant "no meaning: loss.semantic=0" --rival residual_vq:512x5 [key=value ...]

A variant is a name and, after a colon, overrides of the config; a rival (vector-quantize-pytorch, `make rivals`) takes
the place of the levels in the same encoder and decoder: residual_vq:CODESxQUANTIZERS, residual_lfq:CODESxQUANTIZERS or
residual_fsq:8,8,8,5xQUANTIZERS, at every place of the latent. Rivals are trained for full detail alone.

Printed for each: raw bits a clip, steps, mean PSNR of held-out clips by detail, share of captions' content words that
the words name, and share of the codes of each level in use. No average over weights for any of them; the learning rate
falls to nearly nothing by the end. `--out` keeps the tokenizers, for `pyramid evaluate tokenizer`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyramid.config import load
from pyramid.data.datamodule import collate_clips
from pyramid.data.sources import make_datasets
from pyramid.losses import reconstruction_loss
from pyramid.metrics import CodeUsage, psnr, raw_bits
from pyramid.nn.decoder import Decoder
from pyramid.nn.encoder import Encoder
from pyramid.optim import MuonAdamW
from pyramid.schedule import RunConfig, Schedule, training_precision
from pyramid.tokenizer import TokenizerConfig
from pyramid.train import TokenizerTraining, TrainTokenizerConfig
from tasks.models import codebook_sizes
from tasks.train import config_path

BATCH = 16  # of validation
COMMITMENT = 0.25  # weight of a rival's own loss beside the reconstruction's


class Pyramid:
    """Our tokenizer."""

    def __init__(self, config: TrainTokenizerConfig) -> None:
        self.module = TokenizerTraining(config)
        self.module.log_dict = self.module.log = lambda *args, **kwargs: None
        self.tokenizer = self.model = self.module.tokenizer
        self.inside = self.module.inside()
        self.schedule = self.module.schedule

    def objective(self, batch: dict, step: int) -> tuple[Tensor, Callable[[], None]]:
        self.module.step = step
        out, video = self.module.reconstruct(batch)
        return self.module.total(out, video, batch), lambda: self.module.update_codebooks(out.chunks)

    def measure(self, batch: dict, usage: list[CodeUsage]) -> tuple[list[Tensor], list[float]]:
        tokens = self.tokenizer.encode(batch["video"])
        for level, counts in enumerate(usage):
            for chunk in tokens.ids:
                counts.update(chunk[level])
        details = [self.tokenizer.decode(tokens, k) for k in range(1, tokens.num_levels + 1)]
        return details, self.module.words_hit(tokens, batch["caption"])

    def codebook_sizes(self) -> list[int]:
        return codebook_sizes(self.tokenizer)

    def bits(self, num_frames: int) -> float:
        return raw_bits(self.tokenizer.pyramids(num_frames), self.codebook_sizes())

    def save(self, path: Path) -> None:
        self.tokenizer.save_pretrained(path)


class Rival:
    """A residual quantizer of vector-quantize-pytorch in our encoder and decoder."""

    def __init__(self, config: TrainTokenizerConfig, kind: str) -> None:
        import vector_quantize_pytorch as rivals

        self.config: TokenizerConfig = config.model
        name, _, sizes = kind.partition(":")
        codes, _, count = sizes.rpartition("x")
        dim, self.count = config.model.latent_dim, int(count)
        if name == "residual_fsq":
            levels = [int(size) for size in codes.split(",")]
            self.size = math.prod(levels)
            quantizer = rivals.ResidualFSQ(dim=dim, levels=levels, num_quantizers=self.count)
        elif name == "residual_vq":
            self.size = int(codes)
            quantizer = rivals.ResidualVQ(
                dim=dim,
                codebook_size=self.size,
                num_quantizers=self.count,
                kmeans_init=True,
                threshold_ema_dead_code=2,
            )
        elif name == "residual_lfq":
            self.size = int(codes)
            quantizer = rivals.ResidualLFQ(dim=dim, codebook_size=self.size, num_quantizers=self.count)
        else:
            raise SystemExit(f"--rival: expected residual_vq, residual_lfq or residual_fsq, got {name!r}")
        self.model = nn.ModuleDict(
            {"encoder": Encoder(config.model), "decoder": Decoder(config.model), "quantizer": quantizer}
        )
        self.inside = (self.model["encoder"], self.model["decoder"])
        self.schedule = Schedule(config.run)

    def _pass(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        latent = self.model["encoder"](video).latent
        flat = latent.float().flatten(2).mT
        with torch.autocast("cpu", enabled=False):
            quantized, ids, *losses = self.model["quantizer"](flat)
        detail = torch.full((len(video),), self.config.num_levels)
        frames, _ = self.model["decoder"](quantized.mT.unflatten(2, latent.shape[2:]), detail)
        return frames, ids, sum(loss.sum() for loss in losses) if losses else frames.new_zeros(())

    def objective(self, batch: dict, step: int) -> tuple[Tensor, Callable[[], None]]:
        video = batch["video"]
        frames, _, own = self._pass(video)
        return reconstruction_loss(frames, video) + COMMITMENT * own, lambda: None

    def measure(self, batch: dict, usage: list[CodeUsage]) -> tuple[list[Tensor], list[float]]:
        frames, ids, _ = self._pass(batch["video"])
        for level, counts in enumerate(usage):
            counts.update(ids[..., level])
        return [frames], []

    def codebook_sizes(self) -> list[int]:
        return [self.size] * self.count

    def bits(self, num_frames: int) -> float:
        c = self.config
        places = (1 + (num_frames - 1) // c.time_stride) * (c.height // c.stride) * (c.width // c.stride)
        return places * self.count * math.log2(self.size)

    def save(self, path: Path) -> None:
        """It is no model of ours, and stays here."""


def train(subject: Pyramid | Rival, run: RunConfig, data: Any) -> int:
    """Steps on the clips of `data`, in an order of the seed, until `run` ends; how many."""
    optimizer = MuonAdamW(subject.model, subject.inside, lr=run.learning_rate, weight_decay=run.weight_decay)
    mixed = training_precision(run.precision, "cpu") == "bf16-mixed"
    order = torch.Generator().manual_seed(run.seed)
    schedule, step = subject.schedule, 0
    schedule.start()
    subject.model.train()
    while schedule.progress(step) < 1:
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate * schedule.factor(step)
        picked = torch.randint(len(data), (run.batch_size,), generator=order).tolist()
        if hasattr(data, "set_epoch"):
            data.set_epoch(step)  # another place of the clip each time
        items = data.__getitems__(picked) if hasattr(data, "__getitems__") else [data[index] for index in picked]
        batch = collate_clips(items)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss, after = subject.objective(batch, step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(subject.model.parameters(), 1.0)
        optimizer.step()
        after()
        step += 1
        schedule.tick()
    return step


@torch.no_grad()
def measure(subject: Pyramid | Rival, data: Any, num_clips: int) -> tuple[list[float], float | None, list[float]]:
    """PSNR by detail, words named, usage by level, over the first clips of `data`."""
    subject.model.eval()
    usage = [CodeUsage(size) for size in subject.codebook_sizes()]
    rows: list[list[float]] = []
    hits: list[float] = []
    for start in range(0, num_clips, BATCH):
        batch = collate_clips([data[index] for index in range(start, min(start + BATCH, num_clips))])
        details, hit = subject.measure(batch, usage)
        rows += torch.stack([psnr(frames.clamp(-1, 1), batch["video"]) for frames in details], dim=1).tolist()
        hits += hit
    shares = [counts.compute()["usage"] for counts in usage]
    return [sum(part) / len(part) for part in zip(*rows, strict=True)], sum(hits) / len(hits) if hits else None, shares


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("-c", "--config", default="small")
    options.add_argument("--minutes", type=float, default=6.0)
    options.add_argument("--clips", type=int, default=64)
    options.add_argument("--variant", action="append", default=[])
    options.add_argument("--rival", action="append", default=[])
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--out", type=Path)
    options.add_argument("overrides", nargs="*")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    print(f"# torch {torch.__version__}, {args.threads} threads, {args.minutes:g} minutes each; {args.overrides}")
    print(f"{'variant':28s} {'bits':>7s} {'steps':>6s} {'words':>6s}  PSNR by detail | usage by level", flush=True)
    for spec in [*args.variant, *args.rival]:
        name, _, changes = (part.strip() for part in spec.partition(":")) if spec in args.variant else (spec, "", "")
        overrides = [f"run.max_minutes={args.minutes}", *args.overrides, *changes.split()]
        config = load(TrainTokenizerConfig, config_path(args.config, "pyramid"), overrides=overrides)
        model = config.model
        train_set, val_set = make_datasets(config.data, model.num_frames, model.size, model.fps)
        torch.manual_seed(config.run.seed)
        subject = Pyramid(config) if spec in args.variant else Rival(config, spec)
        started = time.monotonic()
        steps = train(subject, config.run, train_set)
        minutes = (time.monotonic() - started) / 60
        details, hits, usage = measure(subject, val_set, min(args.clips, len(val_set)))
        words = "-" if hits is None else f"{hits:.3f}"
        print(
            f"{name:28s} {subject.bits(model.num_frames):7.0f} {steps:6d} {words:>6s}  "
            f"{' '.join(f'{value:.2f}' for value in details)} | {' '.join(f'{share:.2g}' for share in usage)}"
            f"  ({minutes:.1f} min)",
            flush=True,
        )
        if args.out:
            subject.save(args.out / name.replace(" ", "_").replace(":", "_"))


if __name__ == "__main__":
    main()
