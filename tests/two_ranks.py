"""What a process of two does in `test_ranks.py`: importable by name, as torch.multiprocessing wants it."""

from __future__ import annotations

import os
from typing import Any

import tiny_run
import torch

from pyramid.data.datamodule import collate_clips
from pyramid.data.sources import make_datasets
from pyramid.distributed import gather_rows, mean_over_ranks, num_ranks, rank
from pyramid.quantize import VectorQuantizer
from pyramid.train import TokenizerTraining, train_tokenizer

BATCH = 8


def step(kind: str | None) -> dict[str, Any]:
    """One step's loss, gradients, codebook and usage, of this rank's share of eight clips; `kind`: the one codebook
    that all levels have, or all kinds."""
    torch.manual_seed(0)
    config = tiny_run.config("data.image_share=0")
    if kind is not None:
        levels = [dict(level, codebook=kind) for level in tiny_run.RUN["model"]["levels"]]
        config = tiny_run.load(
            tiny_run.TrainTokenizerConfig, {**tiny_run.RUN, "model": {**tiny_run.RUN["model"], "levels": levels}}
        )
    module = TokenizerTraining(config)
    module.step = 2
    module.log_dict = lambda *args, **kwargs: None
    module.on_train_start()
    for level in module.tokenizer.levels.levels:
        if isinstance(level.quantizer, VectorQuantizer):
            level.quantizer.patience = 0.5  # what is not used at once restarts
    model = config.model
    train, _ = make_datasets(config.data, model.num_frames, model.size, model.fps)
    batch = collate_clips([train[index] for index in range(BATCH)][rank() :: num_ranks()])
    out, video = module.reconstruct(batch)
    total = module.total(out, video, batch)
    total.backward()
    gradients = {name: mean_over_ranks(p.grad) for name, p in module.tokenizer.named_parameters() if p.grad is not None}
    for _ in range(2):  # the codebooks start, then they move
        module.update_codebooks(out.chunks)
    critic, terms = module.adversary.for_discriminator(video, out.video, 0)
    critic.backward()
    module.adversary.remember(terms)
    gradients |= {name: mean_over_ranks(p.grad) for name, p in module.adversary.named_parameters()}
    for chunk in out.chunks:
        for usage, ids in zip(module.usage, chunk.ids, strict=True):
            usage.update(ids)
    return {
        "loss": mean_over_ranks(total),
        "critic": mean_over_ranks(critic),
        "gradients": gradients,
        "buffers": {name: buffer for name, buffer in module.named_buffers() if "embeddings" in name or "mean" in name},
        "restarts": {name: buffer for name, buffer in module.named_buffers() if name.endswith(("idle", "counts"))},
        "usage": [dict(sorted(usage.counts.items())) for usage in module._joint_usage()],
        "video": gather_rows(out.video.detach()),
    }


def work(rank_: int, folder: str, port: int) -> None:
    """Writes `step` of every kind and trains in `folder`, as torchrun would have it."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank_), "LOCAL_RANK": str(rank_), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"GROUP_RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "False"}
    torch.distributed.init_process_group("gloo")
    for kind in (None, *KINDS):
        result = step(kind)
        if rank_ == 0:
            torch.save(result, f"{folder}/{kind}.pt")
    forecasts: list = []
    train_tokenizer(tiny_run.config(*TRAINING, "run.batch_size=2"), f"{folder}/run", forecast=forecasts.append)
    assert len(forecasts) == (rank_ == 0)
    torch.distributed.destroy_process_group()


KINDS = ("words", "bits", "fsq", "vq")
TRAINING = ("run.max_steps=5", "run.learning_rate=1e-4", "run.val_every=5")
