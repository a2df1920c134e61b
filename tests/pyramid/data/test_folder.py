"""The folder data set and its loaders, on clips made here."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from pyramid.data.folder import FolderDataset, find_clips, read_metadata
from pyramid.data.video import VideoError, VideoWarning, to_uint8, write_video

SHAPE = {"num_frames": 4, "size": (16, 16)}


def write_numbered(path, num_frames: int, fps: float = 8) -> None:
    """Frame i is one shade of grey, 4 i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shades = (4 * np.arange(num_frames)).astype(np.uint8)
    write_video(path, np.broadcast_to(shades[:, None, None, None], (num_frames, 32, 32, 3)), fps=fps)


def numbers(item: dict) -> list[int]:
    return [round(float(frame.float().mean()) / 4) for frame in to_uint8(item["video"])]


def names(dataset: FolderDataset) -> list[str]:
    return [clip.path.relative_to(dataset.root).as_posix() for clip in dataset.clips]


@pytest.fixture
def root(tmp_path):
    """Three good clips of 20, 6 and 2 frames, one broken, and things that are no clips."""
    write_numbered(tmp_path / "b.mp4", 20)
    write_numbered(tmp_path / "deep" / "er" / "c.MKV", 6)
    write_numbered(tmp_path / "deep" / "a.gif", 2)
    (tmp_path / "broken.mp4").write_text("not a video")
    (tmp_path / "notes.txt").write_text("no clip")
    write_numbered(tmp_path / ".hidden" / "d.mp4", 2)
    return tmp_path


def write_lines(path, *rows) -> None:
    path.write_text("\n".join(json.dumps(row) if isinstance(row, dict) else row for row in rows), encoding="utf8")


def test_finds_clips_in_any_depth(root):
    dataset = FolderDataset(root, **SHAPE)
    assert names(dataset) == ["b.mp4", "broken.mp4", "deep/a.gif", "deep/er/c.MKV"]


def test_linked_folders_are_followed_once(root):
    os.symlink(root, root / "deep" / "loop")
    other = root.parent / "other"
    write_numbered(other / "z.mp4", 2)
    os.symlink(other, root / "linked")
    assert [clip.path.name for clip in find_clips(root)] == ["b.mp4", "broken.mp4", "a.gif", "c.MKV", "z.mp4"]


def test_items(root):
    item = FolderDataset(root, **SHAPE, crop="start")[0]
    assert item["video"].shape == (3, 4, 16, 16) and item["video"].dtype == torch.float32
    assert (item["caption"], item["label"], item["num_valid"]) == ("", None, 4)
    assert item["path"] == str(root / "b.mp4") and numbers(item) == [0, 1, 2, 3]


def test_short_clips_repeat_their_last_frame(root):
    item = FolderDataset(root, **SHAPE, crop="random")[2]
    assert item["num_valid"] == 2 and numbers(item) == [0, 1, 1, 1]


def test_rate_and_crops(root):
    assert numbers(FolderDataset(root, **SHAPE, fps=4, crop="start")[0]) == [0, 2, 4, 6]
    assert numbers(FolderDataset(root, **SHAPE, fps=4, crop="center")[0]) == [6, 8, 10, 12]
    assert numbers(FolderDataset(root, **SHAPE, crop="center")[0]) == [8, 9, 10, 11]
    assert numbers(FolderDataset(root, **SHAPE, crop="end")[0]) == [16, 17, 18, 19]
    assert numbers(FolderDataset(root, **SHAPE | {"num_frames": 1}, crop="end")[0]) == [19]


def test_random_crops_depend_on_seed_epoch_and_index_alone(root):
    dataset = FolderDataset(root, **SHAPE, seed=1)
    starts = []
    for epoch in range(40):
        dataset.set_epoch(epoch)
        shown = numbers(dataset[0])
        assert shown == list(range(shown[0], shown[0] + 4))
        starts.append(shown[0])
    assert len(set(starts)) > 8 and min(starts) <= 2 and max(starts) >= 14
    again = FolderDataset(root, **SHAPE, seed=1)
    again.set_epoch(7)
    assert numbers(again[0])[0] == starts[7]


def test_policy_skip_gives_the_next_clip_and_counts(root):
    dataset = FolderDataset(root, **SHAPE, policy="skip")
    assert dataset[1]["path"].endswith("a.gif") and dataset[1]["path"].endswith("a.gif")
    assert dataset.num_broken == 1
    assert dataset.summary() == (
        f"{root}: 4 clips, 1 could not be read: {root / 'broken.mp4'}: expected a video or picture, got text"
    )


def test_policy_raise_stops(root):
    dataset = FolderDataset(root, **SHAPE, policy="raise")
    with pytest.raises(VideoError, match="broken.mp4: expected a video or picture, got text"):
        dataset[1]
    assert dataset.num_broken == 0 and dataset.summary() == f"{root}: 4 clips, 0 could not be read"


def test_all_broken_stops_under_skip_too(tmp_path):
    (tmp_path / "a.mp4").write_text("x")
    with pytest.raises(VideoError, match="one readable clip, but none of 1 is: .*a.mp4: expected a video or picture"):
        FolderDataset(tmp_path, **SHAPE)[0]


def test_metadata_lists_the_set(root):
    write_lines(
        root / "metadata.jsonl",
        {"file_name": "deep/a.gif", "caption": "a small one", "label": "x", "split": "train"},
        "",
        {"path": "b.mp4", "text": "un café", "split": "val", "frames": 20},
        {"file_name": "gone.mp4", "split": "val"},
    )
    dataset = FolderDataset(root, **SHAPE)
    assert names(dataset) == ["deep/a.gif", "b.mp4", "gone.mp4"]
    assert (dataset[0]["caption"], dataset[0]["label"]) == ("a small one", "x")
    val = FolderDataset(root, **SHAPE, split="val")
    assert names(val) == ["b.mp4", "gone.mp4"] and val[0]["caption"] == "un café" and val.crop == "center"
    assert val[1]["path"].endswith("b.mp4") and "gone.mp4: expected a video file, but nothing" in val.summary()
    with pytest.raises(ValueError, match=r"metadata.jsonl: expected clips of split 'test', found train, val"):
        FolderDataset(root, **SHAPE, split="test")


def test_metadata_elsewhere(root, tmp_path):
    write_lines(tmp_path / "deep" / "list.jsonl", {"path": "a.gif", "caption": None, "label": 3})
    dataset = FolderDataset(root, **SHAPE, metadata=tmp_path / "deep" / "list.jsonl")
    assert names(dataset) == ["deep/a.gif"] and (dataset[0]["caption"], dataset[0]["label"]) == ("", 3)


def test_sub_folders_are_splits_without_metadata(root):
    assert len(FolderDataset(root, **SHAPE, split="deep")) == 2
    with pytest.raises(ValueError, match="expected clips of split 'val', found deep"):
        FolderDataset(root, **SHAPE, split="val")


def test_each_split_may_have_its_metadata(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        write_lines(tmp_path / split / "metadata.jsonl", {"path": "a.mp4", "caption": f"for {split}"})
    both = FolderDataset(tmp_path, **SHAPE)
    assert [(clip.split, clip.caption) for clip in both.clips] == [("train", "for train"), ("val", "for val")]
    assert names(FolderDataset(tmp_path, **SHAPE, split="val")) == ["val/a.mp4"]
    write_video(tmp_path / "val" / "b.mp4", torch.zeros(3, 1, 8, 8))  # not in the metadata of its folder
    (tmp_path / "test").mkdir()
    write_video(tmp_path / "test" / "c.mp4", torch.zeros(3, 1, 8, 8))  # whose folder has none
    assert names(FolderDataset(tmp_path, **SHAPE)) == ["train/a.mp4", "val/a.mp4", "test/c.mp4"]
    write_lines(tmp_path / "metadata.jsonl", {"path": "val/a.mp4"}, {"path": "train/a.mp4", "split": "test"})
    assert [clip.split for clip in FolderDataset(tmp_path, **SHAPE).clips] == ["val", "test"]  # the field comes first


def test_a_subset_counts_for_itself(root):
    dataset = FolderDataset(root, **SHAPE)
    part = dataset.subset([1, 2], crop="start")
    assert [clip.path for clip in part.clips] == [clip.path for clip in dataset.clips[1:3]] and part.crop == "start"
    assert len([part[index] for index in range(2)]) == 2
    assert (part.num_broken, dataset.num_broken, dataset.crop) == (1, 0, "random")


@pytest.mark.parametrize(
    "line, message",
    [
        ("{oops", "line 2: expected a JSON object, got '{oops'"),
        ("[1]", "line 2: expected a JSON object, got list"),
        ('{"caption": "x"}', 'line 2: expected "file_name" or "path" with the name of a clip, got None'),
        ('{"path": 3}', 'line 2: expected "file_name" or "path" with the name of a clip, got 3'),
        ('{"path": "a", "caption": 3}', 'line 2: expected "caption" or "text" to be a string, got int'),
        ('{"path": "a", "label": [1]}', 'line 2: expected "label" to be a string or an integer, got list'),
        ('{"path": "a", "split": 1}', 'line 2: expected "split" to be a string, got int'),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, message):
    write_lines(tmp_path / "metadata.jsonl", {"path": "b.mp4"}, line)
    with pytest.raises(ValueError, match="metadata.jsonl, " + message):
        FolderDataset(tmp_path, **SHAPE)


def test_metadata_that_is_not_utf8_or_not_there(tmp_path):
    (tmp_path / "m.jsonl").write_bytes(b'{"path": "caf\xe9.mp4"}')
    with pytest.raises(ValueError, match="m.jsonl, line 1: expected UTF-8"):
        read_metadata(tmp_path / "m.jsonl")
    with pytest.raises(ValueError, match="no.jsonl: expected a metadata file"):
        read_metadata(tmp_path / "no.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="expected at least one clip"):
        FolderDataset(tmp_path, **SHAPE, metadata=tmp_path / "empty.jsonl")


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(ValueError, match="no: expected a folder of clips, nothing is there"):
        FolderDataset(tmp_path / "no", **SHAPE)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file: expected a folder of clips, got a file"):
        FolderDataset(tmp_path / "file", **SHAPE)
    with pytest.raises(ValueError, match="found no file with a known suffix"):
        FolderDataset(tmp_path, **SHAPE)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_frames": 0}, "num_frames must be at least 1, got 0"),
        ({"policy": "ignore"}, "policy must be one of skip, raise, got 'ignore'"),
        ({"crop": "left"}, "crop must be one of random, center, start, end, got 'left'"),
        ({"fit": "zoom"}, "fit must be one of crop, pad, stretch"),
        ({"size": (0, 1)}, "size must be"),
        ({"fps": 0}, "fps must be positive, got 0"),
    ],
)
def test_bad_arguments(root, options, message):
    with pytest.raises(ValueError, match="FolderDataset: " + message):
        FolderDataset(root, **(SHAPE | options))


def test_a_header_that_promises_too_much(root):
    noise = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    write_video(root / "cut.mkv", noise, fps=8)
    data = (root / "cut.mkv").read_bytes()
    (root / "cut.mkv").write_bytes(data[: len(data) // 4])
    write_lines(root / "metadata.jsonl", {"path": "cut.mkv"})
    dataset = FolderDataset(root, **SHAPE, policy="raise", crop="center")
    assert dataset[0]["num_valid"] == 4  # its middle is lost, so the start is read


# Loaders


class Counting(IterableDataset):
    def __iter__(self):
        for index in range(5):
            yield {"video": torch.full((3, 1, 2, 2), float(index)), "caption": str(index)}


@pytest.fixture
def datamodule():
    return pytest.importorskip("lightning") and __import__("pyramid.data.datamodule", fromlist=["x"])


def test_batches(root, datamodule):
    data = datamodule.ClipData(FolderDataset(root, **SHAPE), FolderDataset(root, **SHAPE, crop="center"), batch_size=3)
    (batch,) = data.train_dataloader()
    assert batch["video"].shape == (3, 3, 4, 16, 16) and batch["num_valid"].dtype == torch.int64
    assert batch["caption"] == ["", "", ""] and batch["label"] == [None, None, None] and len(batch["path"]) == 3
    assert [len(batch["path"]) for batch in data.val_dataloader()] == [3, 1]
    with pytest.warns(VideoWarning, match="4 clips, 1 could not be read"):
        data.teardown("fit")


def test_order_depends_on_seed_and_epoch(root, datamodule):
    def orders(seed: int) -> list[list[str]]:
        loader = datamodule.ClipData(FolderDataset(root, **SHAPE), batch_size=1, seed=seed).train_dataloader()
        return [[batch["path"][0] for batch in loader] for _ in range(4)]

    assert orders(0) == orders(0) and orders(0) != orders(1)
    assert len({tuple(order) for order in orders(0)}) > 1


class Epochs(list):
    """Indices that remember which epochs they were told."""

    def set_epoch(self, epoch):
        self.epoch = epoch


@pytest.mark.parametrize("size", [7, 8])
def test_batches_go_on_where_a_run_was(datamodule, size):
    def batches(position=None, **share):
        return datamodule.EpochBatches(Epochs(range(size)), 2, 5, True, drop_last=True, position=position, **share)

    whole = batches()
    passes = [list(whole) for _ in range(3)]
    stream = [batch for one in passes for batch in one]
    assert len(whole) == size // 2 and passes[0] != passes[1] and whole.dataset.epoch == 2
    for step in range(3 * len(whole)):
        resumed = batches(lambda step=step: step)
        rest = list(resumed)
        assert rest == stream[step : step + len(rest)] and resumed.dataset.epoch == step // len(whole)
        assert len(rest) == len(whole) - step % len(whole)


@pytest.mark.parametrize("drop_last", [True, False])
def test_ranks_share_the_joint_batch(datamodule, drop_last):
    dataset = Epochs(range(11))
    (joint,) = [list(datamodule.EpochBatches(dataset, 4, 5, True, drop_last=drop_last))]
    ranks = [
        list(datamodule.EpochBatches(dataset, 2, 5, True, drop_last=drop_last, rank=r, num_ranks=2)) for r in range(2)
    ]
    for whole, even, odd in zip(joint, *ranks, strict=True):
        assert len(even) == len(odd)  # or a rank waits for one that has ended
        assert [index for pair in zip(even, odd, strict=True) for index in pair][: len(whole)] == whole
    assert len(joint) == (2 if drop_last else 3)


def test_workers_see_the_epoch_and_report_broken_clips(root, datamodule):
    def batches(num_workers: int) -> list[torch.Tensor]:
        dataset = FolderDataset(root, **SHAPE, seed=3)
        loader = datamodule.ClipData(dataset, batch_size=4, num_workers=num_workers).train_dataloader()
        videos = [batch["video"] for _ in range(2) for batch in loader]
        assert dataset.num_broken == 1
        return videos

    for alone, shared in zip(batches(0), batches(1), strict=True):
        assert torch.equal(alone, shared)


def test_iterable_sets_load_too(datamodule):
    loader = datamodule.ClipData(Counting(), batch_size=2).train_dataloader()
    assert [batch["caption"] for batch in loader] == [["0", "1"], ["2", "3"], ["4"]]
    assert datamodule.ClipData(Counting()).val_dataloader() == []


def test_collate_says_what_does_not_fit(datamodule):
    with pytest.raises(ValueError, match=r"expected one shape of 'video' in a batch, got \[\(1,\), \(2,\)\]"):
        datamodule.collate_clips([{"video": torch.zeros(1)}, {"video": torch.zeros(2)}])
    with pytest.raises(ValueError, match="expected the fields"):
        datamodule.collate_clips([{"video": torch.zeros(1)}, {"other": 1}])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        datamodule.ClipData(Counting(), batch_size=0)
    with pytest.raises(ValueError, match="num_workers must be 0 or more"):
        datamodule.ClipData(Counting(), num_workers=-1)


def test_training_with_lightning(root, datamodule):
    lightning = pytest.importorskip("lightning")

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight, self.epochs = torch.nn.Parameter(torch.zeros(())), []

        def training_step(self, batch, index):
            self.epochs.append(int(self.trainer.datamodule.train._epoch))
            return (batch["video"].mean() - self.weight) ** 2

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    model, data = Model(), datamodule.ClipData(FolderDataset(root, **SHAPE), batch_size=2)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    with pytest.warns(UserWarning, match="1 could not be read"):
        lightning.Trainer(max_epochs=3, enable_model_summary=False, **quiet).fit(model, datamodule=data)
    assert model.epochs == [0, 0, 1, 1, 2, 2]


def test_the_plain_loader_works(root):
    batch = next(iter(DataLoader(FolderDataset(root, **SHAPE), batch_size=2, collate_fn=list)))
    assert len(batch) == 2
