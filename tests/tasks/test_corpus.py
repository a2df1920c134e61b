"""Shards through a verb: killed at any moment, started again, shared by processes; every sample exactly once."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import tarfile
import time
from collections import Counter

import numpy as np
import pytest

from pyramid.data.video import write_video
from tasks import cli
from tasks.console import Console
from tasks.corpus import Made, Sample, find_shards, read_shard, run_shards, shards_of


def write_shard(path, samples):
    with tarfile.open(path, "w") as tar:
        for name, data in samples:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def shards(tmp_path):
    """Six shards of five samples of numbers."""
    folder = tmp_path / "in"
    folder.mkdir()
    return [
        write_shard(
            folder / f"{number:05d}.tar",
            [(f"s{number}_{i}.json", json.dumps({"n": 10 * number + i}).encode()) for i in range(5)],
        )
        for number in range(6)
    ]


def slow_work(pause):
    def work(samples):
        for sample in samples:
            time.sleep(pause)
            yield Made(sample.key, {"json": json.dumps({"twice": 2 * sample.fields()["n"]}).encode()})

    return work


def run_all(shards, out, pause=0.0, **settings):
    return run_shards(shards, out, lambda: slow_work(pause), settings, Console("tokenize"))


def found(out):
    return [sample for shard in sorted(out.glob("*.tar")) for sample in read_shard(shard)]


def test_killed_twenty_times_every_sample_comes_once(shards, tmp_path):
    out, draw, context = tmp_path / "out", np.random.default_rng(0), multiprocessing.get_context("fork")
    kills = 0
    while kills < 20:
        child = context.Process(target=run_all, args=(shards, out, 0.004))
        child.start()
        time.sleep(draw.uniform(0.005, 0.05))
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.join()
        assert all(len(list(read_shard(done))) == 5 for done in out.glob("*.tar"))  # whole, or not there
        if (out / "index.json").exists():  # it was done before: from the start again
            for path in [*out.iterdir()]:
                path.unlink()
    index = run_all(shards, out)
    assert Counter(sample.key for sample in found(out)) == {f"s{n}_{i}": 1 for n in range(6) for i in range(5)}
    assert [sample.fields()["twice"] for sample in found(out)] == [20 * n + 2 * i for n in range(6) for i in range(5)]
    assert (index["samples"], index["broken"], index["missing"]) == (30, 0, 0)
    assert json.loads((out / "index.json").read_text())["samples"] == 30
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_what_killed_processes_left_goes(shards, tmp_path):
    """Wherever they were: with a lock on what is done, or in the middle of a small file."""
    out = tmp_path / "out"
    run_all(shards, out)
    (out / "index.json").unlink()
    for name in (".lock", ".00001.tar.lock", ".settings.json.1.part", ".index.json.1.part", ".00001.tar.json.1.part"):
        (out / name).touch()
    assert run_all(shards, out)["samples"] == 30
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_processes_share_the_shards(shards, tmp_path):
    """By rank as torchrun says, and without: one that comes later takes what no other holds."""
    out, context = tmp_path / "out", multiprocessing.get_context("fork")

    def ranked(rank):
        os.environ.update(RANK=str(rank), WORLD_SIZE="2")
        run_all(shards, out, 0.01)

    children = [context.Process(target=ranked, args=(rank,)) for rank in range(2)]
    children += [context.Process(target=run_all, args=(shards, out, 0.01)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert Counter(sample.key for sample in found(out)) == {f"s{n}_{i}": 1 for n in range(6) for i in range(5)}
    assert run_all(shards, out)["missing"] == 0


def test_a_shard_that_cannot_be_read_does_not_stop_the_others(shards, tmp_path, capsys):
    shards[2].write_bytes(b"no tar" * 200)
    with pytest.raises(ValueError, match="00002.tar: expected a WebDataset shard, got"):
        run_all(shards, tmp_path / "out")
    assert len(found(tmp_path / "out")) == 25 and not (tmp_path / "out" / "index.json").exists()
    write_shard(shards[2], [("late.json", b'{"n": 1}')])
    assert run_all(shards, tmp_path / "out")["samples"] == 26


def test_a_shard_without_samples_is_named(tmp_path, capsys):
    (tmp_path / "clip.mp4").write_bytes(b"x")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "clip.mp4")
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        tar.add(tmp_path / "link.mp4", "a.mp4")
    assert run_all([tmp_path / "links.tar"], tmp_path / "out")["samples"] == 0
    assert "links.tar: expected samples, found none" in capsys.readouterr().err


def test_a_shard_that_is_cut_is_refused(shards, tmp_path):
    """Between two samples, where what is left reads like a shorter shard."""
    whole = shards[1].read_bytes()
    with tarfile.open(shards[1]) as tar:
        members = tar.getmembers()
    shards[1].write_bytes(whole[: members[-2].offset])
    with pytest.raises(ValueError, match="00001.tar: expected a WebDataset shard, got one that is cut short"):
        run_all(shards, tmp_path / "out")
    shards[1].write_bytes(whole)
    assert run_all(shards, tmp_path / "out")["samples"] == 30


def test_results_are_of_their_own_shards(shards, tmp_path):
    run_all(shards, tmp_path / "out")
    write_shard(shards[3], [("other.json", b'{"n": 1}')])
    with pytest.raises(ValueError, match=r"00003.tar: expected the shard that .*out/00003.tar was made of"):
        run_all(shards, tmp_path / "out")


def test_shards_and_clips_are_not_mixed(shards, tmp_path):
    folder = shards[0].parent
    assert shards_of([str(folder)]) == shards == shards_of([str(folder / "*")])
    (folder / "clip.mp4").write_bytes(b"x")
    for inputs in ([str(folder)], [str(folder / "*")], [str(shards[0]), str(folder / "clip.mp4")]):
        with pytest.raises(ValueError, match="expected shards or clips, got some of each"):
            shards_of(inputs)
    assert shards_of([str(folder / "clip.mp4")]) == []


def test_a_folder_keeps_its_settings(shards, tmp_path):
    run_all(shards, tmp_path / "out", model="a")
    assert run_all(shards, tmp_path / "out", model="a")["samples"] == 30
    for changed, name in (({"model": "b"}, "model"), ({"model": "a", "detail": 3}, "detail")):
        with pytest.raises(ValueError, match=f"expected results of the same settings, got others: {name}"):
            run_all(shards, tmp_path / "out", **changed)
    with pytest.raises(ValueError, match="expected an empty folder or one of such results, found 00000.tar"):
        run_all(shards, shards[0].parent)
    with pytest.raises(ValueError, match="expected torchrun or ray, got 'dask'"):
        run_shards(shards, tmp_path / "o", lambda: slow_work(0), {}, Console("tokenize"), "dask")
    with pytest.raises(ValueError, match="expected shards of different names"):
        find_shards([shards[0], tmp_path / "other" / "00000.tar"])


def test_a_cluster_by_ray(shards, tmp_path):
    pytest.importorskip("ray")
    index = run_shards(shards, tmp_path / "out", lambda: slow_work(0.0), {}, Console("tokenize"), "ray")
    assert (index["samples"], index["missing"]) == (30, 0)


def test_samples_say_what_they_hold():
    assert Sample("a", {"cam.mp4": b"x", "json": b"{"}).video() == ("mp4", b"x")
    assert Sample("a", {"json": b"{"}).fields() == {} == Sample("a", {"json": b"[1]"}).fields()
    with pytest.raises(ValueError, match="a: expected a clip, got txt"):
        Sample("a", {"txt": b""}).video()


@pytest.fixture
def corpus(tmp_path):
    """Two shards of clips, one of them broken, one without a clip."""
    draw, data = np.random.default_rng(0), []
    for _ in range(4):
        write_video(tmp_path / "c.mp4", list(draw.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)), fps=8)
        data.append((tmp_path / "c.mp4").read_bytes())
        (tmp_path / "c.mp4").unlink()
    folder = tmp_path / "shards"
    folder.mkdir()
    write_shard(
        folder / "a.tar",
        [("0.mp4", data[0]), ("0.json", b'{"from": "here", "caption": "by hand"}'), ("1.mp4", b"no video")],
    )
    write_shard(folder / "b.tar", [("2.mp4", data[1]), ("3.txt", b"no clip"), ("4.mp4", data[2]), ("5.mp4", data[3])])
    return folder


def run(capsys, *args):
    capsys.readouterr()
    code = cli.main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


def test_tokens_and_captions_of_shards(capsys, model, corpus, tmp_path):
    from pyramid.data.video import read_clip
    from pyramid.tokens import TokenPyramid
    from tasks.models import load_lm

    lm = load_lm(model)
    for verb in ("tokenize", "caption"):
        out = tmp_path / verb
        code, lines, err = run(capsys, verb, corpus, "--model", model, "--out", out, "--json")
        assert code == 0, err
        index = json.loads(lines[-1])
        assert (index["samples"], index["broken"], index["missing"]) == (6, 2, 0)
        samples = {sample.key: sample for sample in found(out)}
        assert sorted(samples) == [str(number) for number in range(6)]
        assert samples["0"].fields()["from"] == "here" and "expected a clip, got txt" in samples["3"].fields()["error"]
        assert "expected a video" in samples["1"].fields()["error"]
        for key, sample in samples.items():
            if "error" in sample.fields():
                continue
            video = next(s for shard in sorted(corpus.glob("*.tar")) for s in read_shard(shard) if s.key == key)
            (tmp_path / "c.mp4").write_bytes(video.parts["mp4"])
            clip = read_clip(tmp_path / "c.mp4", num_frames=9, size=(32, 32))[None]
            if verb == "caption":
                assert sample.fields().get("caption_before") == ("by hand" if key == "0" else None)
                assert sample.fields()["caption"] == lm.caption(clip)[0]
                continue
            (tmp_path / "t.safetensors").write_bytes(sample.parts["tokens.safetensors"])
            tokens = TokenPyramid.load(tmp_path / "t.safetensors")
            same = tokens.flatten() == lm.tokenizer.encode(clip).flatten()
            assert tokens.num_frames == 9 and same.float().mean() > 0.98
        code, _, err = run(capsys, verb, corpus, "--model", model, "--out", out)
        assert code == 0 and any("2 of 2 shards are there" in line for line in err)


def test_captions_of_shards_are_found_as_asked_for(capsys, model, corpus, tmp_path):
    def captions(name, *args):
        code, _, err = run(capsys, "caption", corpus, "--model", model, "--out", tmp_path / name, *args)
        return code, err, {sample.key: sample.fields().get("caption") for sample in found(tmp_path / name)}

    drawn = captions("a", "--temperature", "3", "--batch", "1")[2]
    assert drawn == captions("b", "--temperature", "3")[2] != captions("c")[2]
    assert captions("a", "--temperature", "2")[0] == 2  # other settings
    for option in (["--every", "2"], ["--words"], ["--overwrite"]):
        code, err, _ = captions("d", *option)
        assert code == 2 and f"{option[0]}: expected clips, got shards" in err[-1]


def test_tokens_of_files(capsys, model, clip, tmp_path):
    from pyramid.tokens import TokenPyramid

    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    args = ["tokenize", clip, broken, "--model", model, "--out", tmp_path / "out", "--json"]
    code, lines, err = run(capsys, *args)
    assert code == 2 and "broken.mp4" in err[-1]
    record = json.loads(lines[0])
    tokens = TokenPyramid.load(record["output"])
    assert record["tokens"] == tokens.num_tokens() and tokens.num_levels == 5
    code, _, err = run(capsys, *args)
    assert code == 2 and any("exists already" in line for line in err)
    code, _, err = run(capsys, "tokenize", clip, tmp_path / "x.tar", "--model", model)
    assert code == 2
