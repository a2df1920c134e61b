"""Training: the loss falls, runs resume, everything that a run promises is on disk."""

import copy
import csv
import dataclasses
import json
import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from pyramid.config import load
from pyramid.data.shapes import ShapesDataset, preset
from pyramid.data.sources import DataConfig, make_datasets
from pyramid.data.video import write_video
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
        terms = module.losses(out, video, {"caption": [item["caption"]] * 2})
        last = terms["reconstruction"].item()
        first = last if first is None else first
        optimizer.zero_grad()
        (terms["reconstruction"] + 0.3 * terms["semantic"] + 0.25 * terms["latent"]).backward()
        optimizer.step()
    assert math.expm1(last) < 0.05 * math.expm1(first)  # of the squared error
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
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6
    assert len(rows(tmp_path / "metrics.csv")) < len(logged)  # two steps more, not six
    assert (tmp_path / "metrics.1.csv").is_file()  # the log of the first part stays
    after = PyramidTokenizer.from_pretrained(tmp_path).state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert load(TrainTokenizerConfig, tmp_path / "train_config.yaml") == longer

    other = config("run.max_steps=8", "run.learning_rate=0.1", "data.seed=1", "loss.full_detail=1")
    message = "expected the config it began with, got another data.seed, loss.full_detail, run.learning_rate"
    with pytest.raises(ValueError, match=message):
        train_tokenizer(other, tmp_path, resume=True)


def test_resuming_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a checkpoint, found no file"):
        train_tokenizer(config("run.max_steps=1"), tmp_path, resume=True)


class _Stop(Callback):
    def __init__(self, step, error, where="on_train_batch_end"):
        self.step, self.error = step, error
        setattr(self, where, self._stop)

    def _stop(self, trainer, *args):
        if trainer.global_step == self.step:
            raise self.error


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (KeyboardInterrupt(), "on_train_batch_end"),
        (ValueError("a broken clip"), "on_train_batch_end"),
        (KeyboardInterrupt(), "on_validation_batch_start"),
    ],
)
def test_a_run_that_is_stopped_can_go_on(tmp_path, error, where):
    cfg = config("run.max_steps=5", "run.val_every=3")  # checkpoint_every is far away
    with pytest.raises(type(error)):
        train_tokenizer(cfg, tmp_path, callbacks=[_Stop(3, error, where)])
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 3 and state["averaging_state"]["n_averaged"] == 3
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    assert not (tmp_path / "model.safetensors").exists()
    train_tokenizer(cfg, tmp_path, resume=True)
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 5 and state["averaging_state"]["n_averaged"] == 5


def test_a_stop_in_validation_keeps_the_weights_themselves(tmp_path):
    cfg = config("run.max_steps=5", "run.val_every=3", "run.learning_rate=0.05")
    for where, name in (("on_validation_batch_start", "a"), ("on_train_batch_end", "b")):
        with pytest.raises(KeyboardInterrupt):
            train_tokenizer(cfg, tmp_path / name, callbacks=[_Stop(3, KeyboardInterrupt(), where)])
    a, b = (torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in "ab")
    for state in ("state_dict", "current_model_state"):
        assert all(torch.equal(a[state][key], b[state][key]) for key in a[state])


def test_a_run_at_its_end_is_not_resumed(tmp_path):
    cfg = config("run.max_steps=3")
    train_tokenizer(cfg, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="has come to its end after 3 steps; raise run.max_steps"):
        train_tokenizer(cfg, tmp_path, resume=True)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_another_run_does_not_inherit_a_checkpoint(tmp_path):
    train_tokenizer(config("run.max_steps=2"), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(
            config("run.max_steps=2"), tmp_path, callbacks=[_Stop(0, KeyboardInterrupt(), "on_train_start")]
        )
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_the_last_checkpoint_has_the_weights_beside_their_average(tmp_path):
    train_tokenizer(config("run.max_steps=3", "run.learning_rate=0.05"), tmp_path)
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    saved = PyramidTokenizer.from_pretrained(tmp_path).state_dict()
    name = next(name for name in saved if name.endswith("weight"))
    assert torch.equal(state["state_dict"][f"tokenizer.{name}"], saved[name])
    assert not torch.equal(state["current_model_state"][f"tokenizer.{name}"], saved[name])


def test_details_are_sampled_over_all_levels():
    module = TokenizerTraining(config("run.max_steps=10"))
    detail = module.sample_detail(2000)
    assert set(detail.tolist()) == {1, 2, 3, 4, 5, 6}  # 6: unquantized, at the start of a run
    assert 0.4 < (detail == 6).float().mean() < 0.6


def test_schedule_warms_up_and_falls():
    schedule = Schedule(RunConfig(max_steps=100, max_minutes=0, warmup_steps=10))
    factors = [schedule.factor(step) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == pytest.approx(factors[9], abs=0.03)
    assert factors[100] == pytest.approx(0.02) and factors[50] == pytest.approx(0.51)


def test_schedule_counts_earlier_work():
    schedule = Schedule(RunConfig(max_minutes=1))
    schedule.resume(30)
    assert schedule.factor(10**6) == pytest.approx(0.51)
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


@pytest.mark.parametrize(
    "override",
    ["run.max_minutes=0", "run.max_minutes=-1", "run.max_minutes=.nan", "run.max_steps=-2", "run.batch_size=0"]
    + ["run.log_every=0", "run.val_every=0", "run.checkpoint_every=0", "run.learning_rate=-1", "run.ema_decay=7"]
    + ["run.seed=5000000000", "data.source=folder", "data.num_val=0", "data.num_clips=0", "data.recoded=2"],
)
def test_configs_that_cannot_run_are_refused(override):
    with pytest.raises(ValueError, match="got"):
        load(TrainTokenizerConfig, overrides=[override])


def make_folder(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(root / name, torch.zeros(3, 9, 16, 16))
    return DataConfig("folder", path=str(root))


def paths(dataset):
    return {str(clip.path.relative_to(dataset.root)) for clip in dataset.clips}


def test_a_folder_is_cut_into_train_and_val(tmp_path):
    data = make_folder(tmp_path, *(f"{label}/{index}.mp4" for label in "ab" for index in range(10)))
    (tmp_path / "z.mp4").write_text("broken")
    cuts = [make_datasets(dataclasses.replace(data, seed=seed), 9, (16, 16), 8.0) for seed in range(6)]
    for train, val in cuts:
        assert len(val) == 2 and val.crop == "center" and "z.mp4" in paths(train)  # who cannot open does not validate
        assert not paths(train) & paths(val) and len(paths(train) | paths(val)) == 21
    assert len({frozenset(paths(val)) for _, val in cuts}) > 1
    assert paths(make_datasets(data, 9, (16, 16), 8.0)[1]) == paths(cuts[0][1])


def test_images_to_train_on_and_clips_to_validate_on(tmp_path):
    splits = make_folder(tmp_path / "splits", "train/0.mp4", "val/0.mp4")
    cut = make_folder(tmp_path / "cut", *(f"{index}.mp4" for index in range(4)))
    for data in (DataConfig(num_clips=4, num_val=4), splits, cut):
        train, val = make_datasets(dataclasses.replace(data, num_frames=1), 9, (16, 16), 8.0)
        assert train[0]["video"].shape == (3, 1, 16, 16) and val[0]["video"].shape == (3, 9, 16, 16)


@pytest.mark.parametrize(
    ("splits", "train_on", "validate_on"),
    [
        (("train", "val"), {"train/0.mp4", "train/1.mp4"}, {"val/0.mp4", "val/1.mp4"}),
        (("train", "validation", "test"), {"train/0.mp4", "train/1.mp4"}, {"validation/0.mp4", "validation/1.mp4"}),
    ],
)
def test_splits_are_kept_apart(tmp_path, splits, train_on, validate_on):
    data = make_folder(tmp_path, "loose.mp4", *(f"{split}/{index}.mp4" for split in splits for index in range(2)))
    train, val = make_datasets(data, 9, (16, 16), 8.0)
    assert (paths(train), paths(val)) == (train_on, validate_on)


def test_without_a_split_to_validate_on_test_stays_untouched(tmp_path):
    data = make_folder(tmp_path, *(f"{split}/{index}.mp4" for split in ("train", "test") for index in range(2)))
    train, val = make_datasets(data, 9, (16, 16), 8.0)
    assert len(train) == len(val) == 1 and paths(train) | paths(val) == {"train/0.mp4", "train/1.mp4"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("test/a.mp4", "val/b.mp4"), "expected clips to train on, found only those of test and val"),
        (("a.mp4",), "expected 2 clips or more that open"),
    ],
)
def test_folders_that_cannot_be_shared_out(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        make_datasets(make_folder(tmp_path, *names), 9, (16, 16), 8.0)


def test_folders_with_other_names_are_no_splits(tmp_path):
    data = make_folder(tmp_path, *(f"{label}/{index}.mp4" for label in ("bus", "train") for index in range(2)))
    assert sum(map(len, make_datasets(data, 9, (16, 16), 8.0))) == 4
    make_folder(tmp_path, "test/0.mp4")
    train, val = make_datasets(data, 9, (16, 16), 8.0)
    assert paths(train) | paths(val) == {"train/0.mp4", "train/1.mp4"}
    for path in (tmp_path / "train").iterdir():
        path.unlink()
    train, val = make_datasets(data, 9, (16, 16), 8.0)
    assert paths(train) | paths(val) == {"bus/0.mp4", "bus/1.mp4"}


def test_splits_do_not_depend_on_how_a_path_is_spelt(tmp_path, monkeypatch):
    names = [f"{split}/{index}.mp4" for split in ("train", "val") for index in range(3)]
    make_folder(tmp_path / "d", *names)
    lines = "".join(json.dumps({"path": name}) + "\n" for name in names)
    (tmp_path / "d" / "metadata.jsonl").write_text(lines)
    monkeypatch.chdir(tmp_path)
    data = DataConfig("folder", path="d", metadata=str(tmp_path / "d" / "metadata.jsonl"))
    train, val = make_datasets(data, 9, (16, 16), 8.0)
    assert {clip.path.parent.name for clip in train.clips} == {"train"}
    assert {clip.path.parent.name for clip in val.clips} == {"val"}


def test_what_the_encoder_sees_may_be_coded(monkeypatch):
    """`seen` goes in, `video` is to come out."""
    module = TokenizerTraining(config("run.max_steps=10"))
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    monkeypatch.setattr(module, "log_dict", lambda *args, **kwargs: None)
    given = {}
    forward, losses = module.tokenizer.forward, module.losses
    monkeypatch.setattr(module.tokenizer, "forward", lambda v, d: given.update(seen=v) or forward(v, d))
    monkeypatch.setattr(module, "losses", lambda o, v, c: given.update(video=v) or losses(o, v, c))
    batch = {"video": torch.zeros(2, 3, 9, 32, 32), "seen": torch.ones(2, 3, 9, 32, 32), "caption": ["", ""]}
    module.objective(batch)
    assert torch.equal(given["seen"], batch["seen"]) and torch.equal(given["video"], batch["video"])
