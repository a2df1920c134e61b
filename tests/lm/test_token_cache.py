"""Tokens on disk: those of the clips, resumed where it stopped, refused where they are of something else."""

import json

import pytest
import torch

from lm.backbone import LMConfig, make_backbone
from lm.conditions import READING, TASKS, hinted
from lm.curriculum import Curriculum, Group, GroupBatches, MixConfig
from lm.model import PyramidLM
from lm.token_cache import InTurns, TokenDataset, unpack, write_tokens
from lm.train import LMTraining, TrainLMConfig, train_lm
from lm.vocabulary import train_text_tokenizer
from pyramid.config import load
from pyramid.data.datamodule import collate_clips
from pyramid.data.shapes import ShapesDataset, preset
from pyramid.levels import Level, Pyramid
from pyramid.tokenizer import PyramidTokenizer, TokenizerConfig

MODEL = TokenizerConfig(channels=(8, 16, 24), depths=(0, 1, 1), dim=32, depth=1, latent_dim=16)


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return PyramidTokenizer(MODEL).eval()


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    out = tmp_path_factory.mktemp("tokens")
    for split in ("train", "val"):
        write_tokens(tokenizer, ShapesDataset(preset("mini"), split), out / split, count=20, batch_size=2)
    return out


def test_tokens_are_those_of_the_clips(tokenizer, folder):
    tokens = TokenDataset(folder / "train", tokenizer)
    items = ShapesDataset(preset("mini"), "train").__getitems__(list(range(20)))
    assert len(tokens) == 20
    expected = tokenizer.encode(torch.stack([item["video"] for item in items])).flatten()
    assert torch.equal(torch.stack([tokens[index]["ids"] for index in range(20)]).long(), expected)
    assert [tokens[index]["caption"] for index in range(20)] == [item["caption"] for item in items]
    assert tokens[3]["paraphrase"] == items[3]["paraphrase"]
    assert {hinted()[tokens[index]["task"]] for index in range(20)} == set(hinted())


def test_a_batch_of_one_task_has_its_condition(tokenizer, folder):
    tokens = TokenDataset(folder / "train", tokenizer)
    for number, task in enumerate(hinted()):
        rows = [index for index in range(20) if tokens[index]["task"] == number]
        clips, condition = unpack(collate_clips([tokens[index] for index in rows]), tokenizer)
        assert condition.task == task and clips.batch_size == condition.hint.batch_size == len(rows)
        assert [part.shape for part in condition.share] == [(len(rows), 1, 4, 4), (len(rows), 2, 4, 4)]
        assert (condition.tokens is not None) == (task == "interpolate")
        if TASKS[task].replace is not None:
            assert all((part == 1).all() for part in condition.share)
    assert unpack(collate_clips([tokens[0], tokens[2]]), tokenizer)[1] is None  # of two tasks


def test_it_goes_on_after_the_last_whole_shard(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("lm.token_cache.SHARD", 4)
    clips = ShapesDataset(preset("mini"), "val")
    calls = []

    class Stopped(Exception):
        pass

    def stop(*told):
        calls.append(told)
        if told == (8, 8):
            raise Stopped

    with pytest.raises(Stopped):
        write_tokens(tokenizer, clips, tmp_path / "a", count=12, batch_size=4, progress=stop)
    first = (tmp_path / "a" / "00000.safetensors").stat().st_mtime_ns
    write_tokens(tokenizer, clips, tmp_path / "a", count=12, batch_size=4, progress=stop)
    assert calls == [(4, 4), (8, 8), (12, 4)]  # of the whole, and by this call
    assert (tmp_path / "a" / "00000.safetensors").stat().st_mtime_ns == first
    write_tokens(tokenizer, clips, tmp_path / "b", count=12, batch_size=4)
    a, b = (TokenDataset(tmp_path / name) for name in "ab")
    assert all(torch.equal(a.columns[name], b.columns[name]) for name in b.columns) and a.said == b.said
    with pytest.raises(ValueError, match=r"expected an empty folder or one of the same, got another \['clips'\]"):
        write_tokens(tokenizer, clips, tmp_path / "a", count=13, batch_size=4)


def test_tokens_of_another_tokenizer_are_refused(folder, tmp_path):
    torch.manual_seed(1)
    other = PyramidTokenizer(MODEL)
    with pytest.raises(ValueError, match="expected tokens of the tokenizer [0-9a-f]{16}, got those of [0-9a-f]{16}"):
        TokenDataset(folder / "train", other)
    with pytest.raises(FileNotFoundError, match="expected a folder of tokens, found no"):
        TokenDataset(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"format": "pyramid.tokens", "version": 1}))
    with pytest.raises(ValueError, match="expected pyramid.token_cache, version 1"):
        TokenDataset(tmp_path)


def test_a_folder_that_is_not_complete_is_refused(tokenizer, tmp_path):
    out = write_tokens(tokenizer, ShapesDataset(preset("mini"), "val"), tmp_path, count=4, batch_size=4)
    index = json.loads((out / "index.json").read_text()) | {"clips": 9}
    (out / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="expected 9 clips and as many lines, got 4 and 4; a run that was stopped"):
        TokenDataset(out)


def test_training_from_tokens_and_resuming(tokenizer, folder, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    small = {
        "tokenizer": str(tmp_path / "tokenizer"),
        "tokens": str(folder),
        "model": {"dim": 32, "num_layers": 1, "num_heads": 2, "mlp": 48, "text_size": 300, "memory": 3, "history": 2},
        "mix": {"fine_tokens": 20},
        "run": {"max_minutes": 0, "max_steps": 8, "batch_size": 2, "val_every": 100, "checkpoint_every": 4},
    }
    config = load(TrainLMConfig, small, overrides=["run.precision=fp32", "run.device=cpu", "run.val_batches=1"])
    train_lm(config, tmp_path / "whole")
    from lightning.pytorch.callbacks import Callback

    class Interrupt(Callback):
        def on_train_batch_end(self, trainer, module, *args):
            if module.step == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_lm(config, tmp_path / "stopped", callbacks=[Interrupt()])
    train_lm(config, tmp_path / "stopped", resume=True)
    a, b = (torch.load(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("stopped", "whole"))
    for state in ("state_dict", "current_model_state"):
        assert all(torch.equal(a[state][name], b[state][name]) for name in b[state])


PYRAMIDS = (Pyramid((Level(1, 1, 1), Level(1, 2, 2), Level(1, 4, 4))),) + (
    Pyramid((Level(1, 1, 1), Level(1, 2, 2), Level(2, 4, 4))),
) * 2


def groups(count=400, progress=1.0, **mix):
    curriculum = Curriculum(MixConfig(**mix), PYRAMIDS, (*TASKS, *READING), 2, 2, 10)
    return [curriculum.group(progress, torch.Generator().manual_seed(seed)) for seed in range(count)]


def test_every_task_has_its_turn_by_weight():
    found = [group.task for group in groups(2000, images_later=0.0)]
    total = sum(MixConfig().tasks.values())
    for task, weight in MixConfig().tasks.items():
        assert abs(found.count(task) / 2000 - weight / total) < 0.04
    assert {group.task for group in groups(tasks={"generate": 1.0, "caption": 0.0})} == {"generate", "image"}


def test_images_come_first_then_clips():
    early, late = (
        sum(group.task == "image" for group in groups(progress=progress, tasks={"generate": 1.0}))
        for progress in (0.1, 0.6)
    )
    assert early > 330 and late < 70
    assert all(group.num_chunks == 1 for group in groups(progress=0.1) if group.task == "image")


def test_coarse_levels_come_first_and_fine_blocks_share_a_budget():
    early = groups(progress=0.0, tasks={"generate": 1.0}, images_first=0.0, fine_until=1.0)
    assert max(group.detail for group in early) == 3
    for group in groups(tasks={"generate": 1.0}, images_later=0.0, fine_tokens=20):
        fine = [block for block in group.blocks if block[1] >= 2]
        assert len(fine) == (group.detail == 3)  # one block, however large
        assert group.tokens <= 12 + 2 * 15 + 32
    everything = groups(tasks={"generate": 1.0}, images_later=0.0, fine_tokens=1000, all_levels=1.0)
    assert all(len(group.blocks) == 9 for group in everything)


def test_a_run_may_learn_some_levels_alone():
    for group in groups(levels=(2,)):
        if group.task in READING:
            continue
        coarse = group.given if group.task == "refine" else 0
        possible = range(coarse, group.detail)  # where the second is not among them, whatever is
        assert {level for _, level in group.blocks} == ({1} if 1 in possible else set(possible))


def test_levels_that_the_model_does_not_have_are_refused(tokenizer):
    text = train_text_tokenizer(["a red star"], 300)
    config = LMConfig(dim=32, num_layers=1, num_heads=2, mlp=32, text_size=300)
    lm = PyramidLM(config, tokenizer, text, make_backbone(config, len(text)))
    with pytest.raises(ValueError, match=rf"mix.levels: expected numbers from 1 to {lm.num_levels}, got \(99,\)"):
        LMTraining(TrainLMConfig(mix=MixConfig(levels=(99,))), lm)


def test_what_is_given_is_not_learned():
    for group in groups():
        chunks, levels = {c for c, _ in group.blocks}, {k for _, k in group.blocks}
        if group.task in ("animate", "interpolate"):
            assert 0 not in chunks and chunks
        if group.task == "continue":
            assert chunks == set(range(group.given, 3)) and group.given >= 1
        if group.task == "refine":
            assert min(levels) == group.given >= 1
        if group.task not in READING:
            assert group.blocks


def test_batches_are_of_one_group_and_about_as_long():
    class Module:
        step = 0
        curriculum = Curriculum(MixConfig(), PYRAMIDS, (*TASKS, *READING), 2, 2, 10)

        def group(self, step):
            return self.curriculum.group(1.0, torch.Generator().manual_seed(step))

        def seed(self, step, rank):
            return step * 2 + rank

    hints = [index % len(hinted()) for index in range(50)]
    batches = iter(GroupBatches(Module(), 50, hints, 4))
    again = iter(GroupBatches(Module(), 50, hints, 4))
    longest = 4 * Module.curriculum.longest()
    for _ in range(60):
        batch = next(batches)
        assert batch == next(again)
        group = batch[0][1]
        assert isinstance(group, Group) and {item[1] for item in batch} == {group}
        assert longest - group.tokens < len(batch) * group.tokens <= max(longest, group.tokens)
        if group.task in hinted():
            assert {hints[index] for index, _ in batch} == {hinted().index(group.task)}
    other = [next(iter(GroupBatches(Module(), 50, hints, 4, rank=rank))) for rank in (0, 1)]
    assert other[0][0][1] == other[1][0][1] and other[0] != other[1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tasks": {"dance": 1.0}}, "got dance: 1.0"),
        ({"tasks": {"inpaint": -1.0}}, "got inpaint: -1.0"),
        ({"fine_until": 2.0}, "fine_until: expected a share"),
        ({"fine_tokens": 0}, "fine_tokens: expected at least 1"),
        ({"levels": (0, 2)}, "levels: expected numbers from 1"),
    ],
)
def test_a_mix_is_checked(values, message):
    with pytest.raises(ValueError, match=message):
        MixConfig(**values)


def test_data_sets_take_turns_and_begin_again():
    class Few:
        def __init__(self, name, size):
            self.name, self.size, self.epoch = name, size, 0

        def __len__(self):
            return self.size

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __getitem__(self, index):
            return {"clip": f"{self.name}{index}.{self.epoch}"}

    clips = InTurns([Few("a", 2), Few("b", 4), Few("c", 3)])
    found = [item["clip"] for item in clips.__getitems__(list(range(12)))]
    once = ["a0", "b0", "c0", "a1", "b1", "c1", "b2", "c2", "b3"]  # every clip, the longer ones to the end
    assert found == [f"{clip}.0" for clip in once] + ["a0.1", "b0.1", "c0.1"]
    assert [item["clip"] for item in clips.__getitems__([11, 3])] == ["c0.1", "a1.0"]


def test_the_tasks_of_hints_are_read_by_name(tokenizer, tmp_path):
    names = tuple(reversed(hinted()))
    clips = ShapesDataset(preset("mini"), "val")
    out = write_tokens(tokenizer, clips, tmp_path, count=len(names), batch_size=1, hints=names, sources=["shapes:mini"])
    assert [hinted()[item["task"]] for item in TokenDataset(out)] == list(names)
    assert json.loads((out / "index.json").read_text())["sources"] == ["shapes:mini"]
    with pytest.raises(ValueError, match=r"got another \['sources'\]"):
        write_tokens(tokenizer, clips, tmp_path, count=len(names), batch_size=1, hints=names, sources=["shapes:full"])
    index = json.loads((out / "index.json").read_text())
    (out / "index.json").write_text(json.dumps(index | {"hints": ["dance", *names[1:]]}))
    with pytest.raises(ValueError, match=r"expected hints of .*, got \['dance'\]"):
        TokenDataset(out)
