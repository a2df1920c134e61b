"""`pyramid evaluate tokenizer`: figures against those reckoned here, the JSON, what is refused, what is left behind."""

from __future__ import annotations

import json
import math
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from pyramid import metrics
from pyramid.data.shapes import ShapesDataset, preset
from pyramid.data.video import VideoError, read_clip, write_video
from pyramid.quantize import LevelConfig
from pyramid.tokenizer import PyramidTokenizer, TokenizerConfig
from tasks import cli
from tasks.evaluate import report, split_arguments
from tasks.evaluation import COVERAGES, FIGURES, evaluate_tokenizer
from tasks.held_out import ClipsSource, HeldOutClip, ShapesSource, clips_source

LEVELS = (LevelConfig("bits", 1, 1, 1, bits=7), LevelConfig("bits", 1, 2, 2, bits=5), LevelConfig("fsq", 2, 4, 4))
SHAPE = {"num_frames": 9, "size": (32, 32), "fps": 8.0}


def random_tokenizer() -> PyramidTokenizer:
    torch.manual_seed(0)
    shape = {"channels": (8, 16), "depths": (0, 1), "dim": 16, "depth": 1, "linear_path": False}
    return PyramidTokenizer(TokenizerConfig(levels=LEVELS, **shape)).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return random_tokenizer()


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 clips of noise in two hands, a third of them val; one of each split cannot be read, one val clip is short."""
    root = tmp_path_factory.mktemp("clips")
    rows = []
    for number in range(24):
        name, split, kind = f"{number:02d}.mkv", "val" if number % 3 == 0 else "train", "ab"[number % 2]
        draw = np.random.default_rng(number)
        frames = draw.integers(0, 128, (5 if number == 6 else 9, 32, 32, 3)) + 127 * (kind == "b")
        write_video(root / name, list(frames.astype(np.uint8)), fps=8)
        rows.append({"file_name": name, "split": split, "label": f"{kind}{number % 4}", "alphabet": kind, "id": number})
    for name, split in (("x.mkv", "val"), ("y.mkv", "train")):
        (root / name).write_bytes(b"no clip")
        rows.append({"file_name": name, "split": split, "label": "a0", "alphabet": "a", "id": name})
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    return root


def run(capsys, *args) -> tuple[int, list[str], list[str]]:
    capsys.readouterr()
    code = cli.main(["evaluate", "tokenizer", *map(str, args)])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


# ------------------------------------------------------------------------------------------ figures


def test_figures_are_those_of_the_clips_drawn(tokenizer):
    result = evaluate_tokenizer(tokenizer, ShapesSource(preset("mini")), seeds=[4], num_clips=6, probe_clips=30)
    indices = np.random.default_rng(4).choice(1 << 20, 6, replace=False).tolist()
    video = torch.stack([clip["video"] for clip in ShapesDataset(preset("mini"), "test").__getitems__(sorted(indices))])
    video = ((video + 1) * 127.5).round() / 127.5 - 1
    tokens = tokenizer.encode(video)
    for k, row in enumerate(result.rows, start=1):
        decoded = ((tokenizer.decode(tokens, k) + 1) * 127.5).round() / 127.5 - 1
        for name in ("psnr", "ssim", "ms_ssim"):
            assert row[name] == pytest.approx(getattr(metrics, name)(decoded, video).mean().item(), rel=1e-5), name
        assert row["tokens"] == tokens.num_tokens(k)
        flat = torch.cat([levels[k - 1].flatten() for levels in tokens.ids])
        share = flat.unique(return_counts=True)[1].double() / len(flat)
        assert row["usage"] == pytest.approx(len(share) / row["codebook_size"])
        assert row["perplexity"] == pytest.approx(math.exp(-(share * share.log()).sum()))
        assert row["codes_counted"] == len(flat) == 6 * row["level_tokens"]
    # 2 chunks: 2 tokens of 7 bits, 8 of 5 bits, 16 + 32 of 8*5*5*5 codes
    bits = [14, 14 + 40, 14 + 40 + 48 * math.log2(1000)]
    assert [row["bpp"] for row in result.rows] == pytest.approx([b / (9 * 32 * 32) for b in bits])


def test_equal_reconstructions_have_the_stated_best_figures(monkeypatch):
    tokenizer = random_tokenizer()
    seen = []
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda video: (seen.append(video), encode(video))[1])
    monkeypatch.setattr(tokenizer, "decode", lambda tokens, k: seen[-1] + 0.9 / 255)  # rounded away
    source = ShapesSource(preset("mini"))
    source.classes = {}
    result = evaluate_tokenizer(tokenizer, source, seeds=[0], num_clips=5)
    for row in result.rows:
        assert (row["psnr"], row["ssim"], row["ms_ssim"]) == (100.0, pytest.approx(1.0), pytest.approx(1.0))
    assert "at most 100 dB, which equal clips get" in result.protocol["psnr"]
    unrounded = evaluate_tokenizer(tokenizer, source, seeds=[0], num_clips=5, rounding=False)
    assert unrounded.rows[0]["psnr"] == pytest.approx(20 * math.log10(255 / 0.45), abs=0.01)
    assert unrounded.protocol["rounding"] == "none"
    assert unrounded.protocol["clips_hash"] == result.protocol["clips_hash"]  # of the clips as 8 bits


class Coded:
    """Clips of coarse noise whose label is one bit of the codes at level 2, or another one that nothing shows."""

    no_probe = ""

    def __init__(self, tokenizer, shuffled=False):
        self.tokenizer, self.shuffled = tokenizer, shuffled
        self.classes, self.broken, self.alive, self.most_alive = {"bit": ["0", "1"]}, {}, weakref.WeakSet(), 0
        bits = self.bits(self.draw("train", range(100))[0])
        self.column = (
            (bits.float().mean(dim=0) - 0.5).abs().argmin().item()
        )  # the bit that is on most nearly half the time

    def draw(self, part, indices):
        draws = [torch.Generator().manual_seed(i + 10_000 * (part == "train")) for i in indices]
        coarse = torch.stack([torch.rand(3, 3, 4, 4, generator=draw) * 2 - 1 for draw in draws])
        video = torch.nn.functional.interpolate(coarse, (9, 32, 32))
        return ((video + 1) * 127.5).round() / 127.5 - 1, draws

    def bits(self, video):
        """(N, 4 cells * 5 bits) of the second chunk."""
        ids = self.tokenizer.encode(video).ids[1][1].flatten(1)
        return (ids[..., None] >> torch.arange(5) & 1).flatten(1)

    def size(self, part):
        return 500 if part == "train" else 300

    def clips(self, part, indices, batch_size):
        for start in range(0, len(indices), batch_size):
            chosen = indices[start : start + batch_size]
            video, draws = self.draw(part, chosen)
            labels = self.bits(video)[:, self.column].tolist()
            if self.shuffled:
                labels = [int(torch.randint(0, 2, (1,), generator=draw)) for draw in draws]
            clips = zip(chosen, video, labels, strict=True)
            batch = [HeldOutClip(index, clip, 9, {"bit": str(label)}) for index, clip, label in clips]
            self.alive.update(batch)
            self.most_alive = max(self.most_alive, len(self.alive))
            yield batch

    def describe(self):
        return {"data": "coded", "size": [32, 32], "frames": 9}


def test_probes_read_what_is_in_the_codes_from_its_level_on(tokenizer):
    source = Coded(tokenizer)
    result = evaluate_tokenizer(tokenizer, source, seeds=[0, 1], num_clips=200, probe_clips=300)
    accuracy = [row["understanding"]["bit"] for row in result.rows]
    chance = result.rows[0]["chance"]["bit"]
    assert 0.45 < chance < 0.75, "or the test shows nothing"
    assert accuracy[1] == 1.0 and accuracy[2] > 0.95
    assert accuracy[0] < 0.9
    assert source.most_alive <= 2 * 32 + 32, "clips are let go, batch by batch"
    assert result.protocol["clips_a_seed"] == [200, 200] and 200 < result.protocol["clips"] <= 300


def test_words_cover_what_captions_say():
    """A tokenizer whose words are those of the first clip's caption, whatever it sees."""
    tokenizer = PyramidTokenizer(TokenizerConfig(channels=(8, 16), depths=(0, 1), dim=16, depth=1)).eval()
    source = ShapesSource(preset("mini"))
    captions = [ShapesDataset(preset("mini"), "test").describe([index])[0]["caption"] for index in range(4)]
    said = [word for word in ("large", "red", "star", "left") if any(word in caption for caption in captions)]
    tokenizer.words = lambda tokens: [[[["the"], said]] * len(tokens.ids)] * tokens.batch_size
    source.size = lambda part: 4 if part == "held_out" else 1000
    rows = evaluate_tokenizer(tokenizer, source, seeds=[0], probe_clips=100).rows
    share = [sum(word in caption.split() for word in said) / 4 for caption in captions]
    assert rows[0]["coverage"] == 0 and rows[2]["coverage"] is None
    assert rows[1]["coverage"] == pytest.approx(sum(share) / 4)
    assert rows[1]["coverage_shuffled"] == pytest.approx(sum(share) / 4)  # all say the same


def test_labels_without_meaning_are_read_at_chance(tokenizer):
    result = evaluate_tokenizer(tokenizer, Coded(tokenizer, shuffled=True), seeds=[0], probe_clips=300)
    for row in result.rows:
        assert abs(row["understanding"]["bit"] - 0.5) < 0.12  # 300 clips: standard deviation 0.03
        assert abs(row["chance"]["bit"] - 0.5) < 0.12


def test_a_seed_gives_the_same_figures_and_another_seed_others(tokenizer):
    def scored(*seeds):
        return evaluate_tokenizer(tokenizer, ShapesSource(preset("mini")), seeds=seeds, num_clips=8, probe_clips=30)

    one, again, both = scored(3), scored(3), scored(3, 5)
    assert one.rows == again.rows and one.protocol == again.protocol
    for row, pair in zip(one.rows, both.rows, strict=True):
        first, second = pair["seeds"]
        assert first["psnr"] == pytest.approx(row["psnr"], rel=1e-6) and first["psnr"] != second["psnr"]
        assert pair["psnr"] == pytest.approx((first["psnr"] + second["psnr"]) / 2)
        assert pair["spread"]["psnr"] == pytest.approx(abs(first["psnr"] - second["psnr"]) / 2)
    assert one.protocol["clips_hash"] != both.protocol["clips_hash"]


def test_a_clip_of_several_objects_is_not_probed():
    source = ShapesSource(preset("full", height=32, width=32, num_frames=3), name="full")
    clips = [clip for batch in source.clips("held_out", range(40), 16) for clip in batch]
    objects = [len(item["attributes"].objects) for item in source.sets["held_out"].describe(range(40))]
    assert [bool(clip.labels) for clip in clips] == [count == 1 for count in objects]
    assert 0 < sum(bool(clip.labels) for clip in clips) < 40


def test_small_frames_have_no_ms_ssim_and_the_protocol_says_why(tokenizer):
    source = ShapesSource(preset("mini", height=16, width=16, num_frames=1))
    result = evaluate_tokenizer(tokenizer, source, seeds=[0], num_clips=4, probe_clips=20)
    assert result.rows[0]["ms_ssim"] is None and result.rows[0]["ssim"] is not None
    assert result.protocol["ms_ssim"] == "null: frames of 16x16 hold fewer than 2 scales"
    assert result.protocol["ms_ssim_scales"] is None
    assert "none" in report(result)
    tiny = ShapesSource(preset("mini", height=8, width=8, num_frames=1))
    result = evaluate_tokenizer(tokenizer, tiny, seeds=[0], num_clips=4, probe_clips=20)
    assert result.rows[0]["ssim"] is None and result.protocol["ssim"].startswith("null: frames of 8x8")


def test_nan_is_refused(monkeypatch):
    tokenizer = random_tokenizer()
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda tokens, k: decode(tokens, k) * math.nan)
    with pytest.raises(ValueError, match="evaluate: detail 1: expected a reconstruction in .-1, 1., got NaN"):
        evaluate_tokenizer(tokenizer, ShapesSource(preset("mini")), seeds=[0], num_clips=2, probe_clips=20)


# ------------------------------------------------------------------------------------------ folders and files


def test_a_folder_is_scored_on_val_and_probed_from_train(tokenizer, folder):
    source = clips_source([folder], **SHAPE)
    assert (source.size("held_out"), source.size("train")) == (9, 17)
    assert source.classes == {"label": ["a0", "a2", "b1", "b3"], "alphabet": ["a", "b"]}
    result = evaluate_tokenizer(tokenizer, source)
    protocol = result.protocol
    assert (
        set(result.broken) <= {str(folder / "x.mkv"), str(folder / "y.mkv")} and str(folder / "x.mkv") in result.broken
    )
    assert (protocol["clips"], protocol["short_clips"], protocol["split"]) == (8, 1, "val")
    assert protocol["broken_clips"] == len(result.broken)
    # light and dark: half the val clips are of the class most frequent in training, all are told apart
    assert result.rows[0]["chance"]["alphabet"] == 0.5
    assert result.rows[-1]["understanding"]["alphabet"] == 1.0
    assert set(result.rows[0]["understanding"]) == {"label", "alphabet", "all"}


def test_only_a_clips_own_frames_count(tokenizer, folder):
    source = clips_source([folder / "06.mkv"], **SHAPE)
    result = evaluate_tokenizer(tokenizer, source, seeds=[0])
    video = read_clip(folder / "06.mkv")[None]
    assert video.shape[2] == 5
    padded = torch.cat([video, video[:, :, -1:].expand(-1, -1, 4, -1, -1)], dim=2)
    decoded = tokenizer.decode(tokenizer.encode(padded))[:, :, :5]
    decoded = ((decoded + 1) * 127.5).round() / 127.5 - 1
    assert result.rows[-1]["psnr"] == pytest.approx(metrics.psnr(decoded, video).item(), rel=1e-5)
    assert result.rows[-1]["understanding"] is None
    assert result.protocol["understanding"] == "there is no training split to learn a probe from"


def test_the_policy_raise_stops_at_a_broken_clip(tokenizer, folder):
    with pytest.raises(VideoError, match="x.mkv"):
        evaluate_tokenizer(tokenizer, clips_source([folder / "x.mkv"], policy="raise", **SHAPE))
    with pytest.raises(
        ValueError, match="expected at least one clip that can be read, got none of 1; the first: .*x.mkv"
    ):
        evaluate_tokenizer(tokenizer, clips_source([folder / "x.mkv"], **SHAPE))


def test_targets_that_name_no_classes_are_refused(folder):
    with pytest.raises(ValueError, match=r"--target id: expected two classes or more .* got 17 values on 17 clips"):
        clips_source([folder], targets=["id"], **SHAPE)
    with pytest.raises(ValueError, match="--target label: expected a training split"):
        clips_source([folder / "06.mkv"], targets=["label"], **SHAPE)
    assert clips_source([folder], targets=["alphabet"], **SHAPE).classes == {"alphabet": ["a", "b"]}


def test_a_folder_without_held_out_clips_is_refused_unless_it_has_no_splits(tmp_path, folder):
    clip = (folder / "00.mkv").read_bytes()
    (tmp_path / "one.mkv").write_bytes(clip)
    source = clips_source([tmp_path], **SHAPE)
    assert isinstance(source, ClipsSource) and source.size("held_out") == 1 and not source.classes
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "two.mkv").write_bytes(clip)
    with pytest.raises(ValueError, match="expected clips of split val, validation, test, found train; name one"):
        clips_source([tmp_path], **SHAPE)
    assert clips_source([tmp_path], split="train", **SHAPE).size("held_out") == 1


# ------------------------------------------------------------------------------------------ the command


def test_json_rows_then_the_protocol(capsys, model, folder):
    code, said, errors = run(capsys, model, folder, "--json", "--no-rounding")
    assert code == 2  # broken clips are named, and the others scored
    assert any("x.mkv" in line for line in errors)
    records = [json.loads(line) for line in said]
    broken = [record for record in records if "error" in record]
    rows, protocol = records[len(broken) : -1], records[-1]["protocol"]
    assert str(folder / "x.mkv") in {record["input"] for record in broken}
    assert [row["detail"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert list(row)[:3] == ["detail", "tokens", "bpp"]
        for name in ("psnr", "ssim", "ms_ssim", "bpp", "usage", "perplexity"):
            assert isinstance(row[name], float), name
        for name in ("tokens", "level_tokens", "codebook_size", "codes_counted"):
            assert isinstance(row[name], int), name
        assert row["understanding"].keys() == row["chance"].keys() == {"label", "alphabet", "all"}
        assert row["spread"].keys() == {*FIGURES, *COVERAGES, "understanding"}
        assert [seed["seed"] for seed in row["seeds"]] == [0, 1]
        assert row["spread"]["psnr"] == 0  # both seeds score all clips
    needed = "data split size resize_filter crop rate clips clips_hash short_clips broken_clips rounding understanding"
    for name in f"{needed} psnr ssim ms_ssim bpp seeds device machine model model_hash ema".split():
        assert protocol[name] is not None, name
    assert protocol["rounding"] == "none" and protocol["resize_filter"].startswith("bicubic")
    assert protocol["ema"].startswith("unknown")


def test_out_is_written_whole_and_never_overwritten(capsys, model, tmp_path):
    (model / "train_config.yaml").write_text("run: {ema_decay: 0.99}\n")
    out = tmp_path / "made" / "here"
    args = (model, "shapes", "--clips", 6, "--probe-clips", 30, "--out", out)
    code, said, _ = run(capsys, *args, "--seeds", 1)
    (model / "train_config.yaml").unlink()
    assert code == 0
    assert {path.name for path in out.iterdir()} == {"evaluation.txt", "evaluation.json", "evaluation.png"}
    assert (out / "evaluation.txt").read_text().splitlines() == said
    record = json.loads((out / "evaluation.json").read_text())
    assert len(record["rows"]) == 3 and record["protocol"]["seeds"] == [0]
    assert record["protocol"]["ema"] == "moving average of the weights, decay 0.99"
    picture = np.asarray(Image.open(out / "evaluation.png").convert("RGB"))
    assert min(picture.shape[:2]) > 500 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    before = (out / "evaluation.json").read_bytes()
    code, _, errors = run(capsys, *args)
    assert code == 2 and "--overwrite" in errors[-1] and (out / "evaluation.json").read_bytes() == before
    assert run(capsys, *args, "--overwrite")[0] == 0
    assert json.loads((out / "evaluation.json").read_text())["protocol"]["seeds"] == [0, 1]


def test_the_model_hash_is_of_the_weights(capsys, model, tmp_path, tokenizer):
    def hash_of(folder):
        said = run(capsys, folder, "shapes", "--clips", 2, "--probe-clips", 20, "--json")[1]
        return json.loads(said[-1])["protocol"]["model_hash"]

    tokenizer.save_pretrained(tmp_path / "same")
    other = random_tokenizer()
    torch.nn.init.zeros_(next(other.parameters()))
    other.save_pretrained(tmp_path / "other")
    assert hash_of(model) == hash_of(tmp_path / "same") != hash_of(tmp_path / "other")


def test_the_model_comes_first():
    assert split_arguments(["shapes"]) == (None, ["shapes"])
    assert split_arguments(["default", "shapes"]) == (None, ["shapes"])
    assert split_arguments(["runs/mine", "a.mp4", "b.mp4"]) == ("runs/mine", ["a.mp4", "b.mp4"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{model}", "shapes:grand"], "shapes.preset: expected one of"),
        (["{model}", "shapes", "--split", "train"], "--split: expected one of val, test, combinations of shapes"),
        (["{model}", "shapes", "--target", "label"], "--target: expected a folder of clips, got shapes"),
        (["{model}", "shapes", "--fit", "squash"], "--fit: expected one of crop, pad, stretch, got 'squash'"),
        (["{model}", "shapes", "--policy", "hope"], "--policy: expected one of skip, raise, got 'hope'"),
        (["{model}", "shapes", "--size", "big"], "--size: expected a height"),
        (["{model}", "shapes", "--fps", "-1"], "--fps: expected a rate, or 0 for the file's own, got -1.0"),
        (["{model}", "{folder}", "--split", "tset"], "expected clips of split 'tset', found train, val"),
        (
            ["{model}", "{folder}/00.mkv", "--split", "val"],
            "--split: expected a folder of clips with splits, got files",
        ),
        (["{model}", "nowhere"], "nowhere: expected a file, a folder or a glob, found nothing"),
        (
            ["{folder}/00.mkv", "{folder}/03.mkv"],
            "expected a model folder, a hub id or the word default before the data",
        ),
        (["/nowhere/model", "shapes"], "/nowhere/model"),
        (["{model}", "shapes", "--seed", "4294967295"], "--seed: expected at most 4294967294 for 2 seeds"),
        (["{model}", "{folder}", "--out", "{folder}"], "expected a folder apart from"),
    ],
)
def test_what_is_refused(capsys, model, folder, args, message):
    code, said, errors = run(capsys, *(arg.format(model=model, folder=folder) for arg in args))
    assert code == 2 and not said
    assert message in errors[-1]
