"""Training: the loss falls, runs resume, everything that a run promises is on disk."""

import copy
import csv
import dataclasses

import pytest
import torch

from pyramid.config import load
from pyramid.data.shapes import ShapesDataset, preset
from pyramid.data.sources import DataConfig, make_datasets
from pyramid.optim import MuonAdamW
from pyramid.schedule import RunConfig, Schedule, training_precision
from pyramid.tokenizer import PyramidTokenizer
from pyramid.train import TokenizerTraining, TrainTokenizerConfig, train_tokenizer

SMALL = {
    "model": {"channels": [16, 32, 48], "depths": [0, 1, 1], "dim": 64, "depth": 1, "latent_dim": 32},
    "data": {"num_clips": 64, "num_val": 4},
    "run": {"max_minutes": 0, "batch_size": 4, "warmup_steps": 2, "precision": "fp32", "device": "cpu"},
}


def config(*overrides):
    return load(TrainTokenizerConfig, SMALL, overrides=["run.val_batches=1", "run.log_every=2", *overrides])


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_one_clip_is_overfitted():
    """The first gate: one clip, again and again, must come out almost as it went in."""
    torch.manual_seed(0)
    cfg = config("run.max_steps=150", "loss.unquantized=0", "loss.full_detail=1")
    module = TokenizerTraining(cfg)
    item = ShapesDataset(preset("mini"))[0]
    video = item["video"][None].expand(2, -1, -1, -1, -1)
    optimizer = MuonAdamW(module, (module.tokenizer.encoder, module.tokenizer.decoder), lr=3e-3, weight_decay=0.0)
    first = last = None
    for _ in range(150):
        out = module.tokenizer(video, torch.tensor([5, 5]))
        terms = module.losses(out, video, [item["caption"]] * 2)
        last = terms["reconstruction"].item()
        first = last if first is None else first
        optimizer.zero_grad()
        (5 * terms["reconstruction"] + 0.3 * terms["semantic"] + 0.25 * terms["latent"]).backward()
        optimizer.step()
    assert last < 0.05 * first
    assert terms["words_hit"] == 1.0


def test_a_run_writes_what_it_promises_and_resumes(tmp_path):
    cfg = config("run.max_steps=4", "run.val_every=2", "run.checkpoint_every=4")
    assert train_tokenizer(cfg, tmp_path) == tmp_path
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "words.safetensors", "train_config.yaml", "metrics.csv"} <= names
    logged = rows(tmp_path / "metrics.csv")
    fields = {name for row in logged for name, value in row.items() if value}
    levels = {f"level{k}/{figure}" for k in range(1, 6) for figure in ("usage", "perplexity")}
    assert levels | {"train/loss", "train/reconstruction", "val/psnr_detail5", "val/words_hit"} <= fields
    assert any(row["level1/usage"] for row in logged if row["step"] in ("0", "1"))  # from the first steps on
    assert load(TrainTokenizerConfig, tmp_path / "train_config.yaml") == cfg
    before = PyramidTokenizer.from_pretrained(tmp_path).state_dict()

    longer = dataclasses.replace(cfg, run=dataclasses.replace(cfg.run, max_steps=6))
    train_tokenizer(longer, tmp_path, resume=True)
    assert max(int(row["step"]) for row in rows(tmp_path / "metrics.csv")) == 5
    assert (tmp_path / "metrics.1.csv").is_file()  # the log of the first part stays
    after = PyramidTokenizer.from_pretrained(tmp_path).state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_resuming_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a checkpoint, found no file"):
        train_tokenizer(config("run.max_steps=1"), tmp_path, resume=True)


def test_details_are_sampled_over_all_levels():
    module = TokenizerTraining(config("run.max_steps=10"))
    detail = module.sample_detail(2000)
    assert set(detail.tolist()) == {1, 2, 3, 4, 5, 6}  # 6: unquantized, at the start of a run
    assert 0.4 < (detail == 6).float().mean() < 0.6


def test_schedule_warms_up_and_falls():
    schedule = Schedule(RunConfig(max_steps=100, max_minutes=0, warmup_steps=10))
    factors = [schedule.factor(None, step) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == pytest.approx(factors[9], abs=0.03)
    assert factors[100] == pytest.approx(0.02) and factors[50] == pytest.approx(0.51)


def test_schedule_counts_earlier_work():
    schedule = Schedule(RunConfig(max_minutes=1))
    schedule.resume(30)
    assert schedule.factor(None, 10**6) == pytest.approx(0.51)
    assert training_precision("fp32", "cpu") == "32-true"
    with pytest.raises(ValueError, match="expected auto, fp32 or bf16, got 'fp8'"):
        training_precision("fp8", "cpu")


def test_optimizer_state_round_trips():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.LayerNorm(64), torch.nn.Linear(64, 4))
    optimizer = MuonAdamW(model, (model,), lr=0.01, weight_decay=0.0)
    x = torch.randn(8, 32)

    def step(model, optimizer):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    step(model, optimizer)
    twin = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.LayerNorm(64), torch.nn.Linear(64, 4))
    twin.load_state_dict(model.state_dict())
    other = MuonAdamW(twin, (twin,), lr=0.5, weight_decay=0.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # loading shares tensors, as torch's own does
    step(model, optimizer), step(twin, other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    with pytest.raises(ValueError, match="found none"):
        MuonAdamW(model, (torch.nn.GELU(),), lr=0.1, weight_decay=0.0)


@pytest.mark.parametrize("overrides", [["run.max_minutes=0"], ["run.batch_size=0"], ["data.source=folder"]])
def test_configs_that_cannot_run_are_refused(overrides):
    with pytest.raises(ValueError, match="got"):
        load(TrainTokenizerConfig, overrides=overrides)


def test_a_folder_is_cut_into_train_and_val(tmp_path):
    from pyramid.data.video import write_video

    for index in range(12):
        write_video(tmp_path / f"{index:02d}.mp4", torch.zeros(3, 9, 16, 16))
    train, val = make_datasets(DataConfig("folder", path=str(tmp_path)), 9, (16, 16), 8.0)
    assert (len(train), len(val)) == (11, 1)
    assert not {clip.path for clip in train.clips} & {clip.path for clip in val.clips}
    (tmp_path / "val").mkdir()
    (tmp_path / "train").mkdir()
    write_video(tmp_path / "val" / "a.mp4", torch.zeros(3, 9, 16, 16))
    write_video(tmp_path / "train" / "b.mp4", torch.zeros(3, 9, 16, 16))
    train, val = make_datasets(DataConfig("folder", path=str(tmp_path)), 9, (16, 16), 8.0)
    assert (len(train), len(val)) == (1, 1)
