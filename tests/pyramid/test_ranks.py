"""Two processes, each with half of a batch, do what one does with the whole: loss, gradient, entropy of bits, learned
codebooks with their restarts, usage, the discriminator; and so does a whole run through Lightning."""

import csv
import socket

import pytest
import tiny_run
import torch
import two_ranks

from pyramid.train import train_tokenizer


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(two_ranks.work, (str(folder), free_port()), nprocs=2)
    return folder


@pytest.mark.parametrize("kind", [None, *two_ranks.KINDS])
def test_a_step_of_two_ranks_is_that_of_one(ranks, kind):
    two, one = torch.load(ranks / f"{kind}.pt", weights_only=True), two_ranks.step(kind)
    torch.testing.assert_close(two["video"], one["video"], rtol=1e-4, atol=1e-5)
    assert two["usage"] == one["usage"]
    for name in ("loss", "critic"):
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-6)
    assert bool(one["restarts"]) == (kind in (None, "vq"))
    for group, tolerance in (("gradients", 1e-4), ("buffers", 1e-5), ("restarts", 1e-6)):
        assert two[group].keys() == one[group].keys()
        for name, value in one[group].items():
            off = (two[group][name] - value).abs().max().item()
            assert off <= tolerance * value.abs().max().item() + 1e-8, (name, off)


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_of_two_ranks_is_that_of_one(ranks, tmp_path):
    """Up to rounding, which the orthogonalized updates make larger: in the first steps."""
    train_tokenizer(tiny_run.config(*two_ranks.TRAINING), tmp_path / "run")
    two, one = rows(ranks / "run" / "metrics.csv"), rows(tmp_path / "run" / "metrics.csv")
    assert [row["step"] for row in two] == [row["step"] for row in one]
    names = [name for name in one[0] if name.startswith(("train/", "level", "adversary/", "val/"))]
    assert {"train/quantizer", "level2/perplexity", "adversary/lecam", "val/psnr_detail4"} <= set(names)
    for a, b in zip(two, one, strict=True):
        for name in names:
            assert bool(a[name]) == bool(b[name]), name
            if b[name] and name != "train/words_hit":
                assert float(a[name]) == pytest.approx(float(b[name]), rel=2e-3, abs=2e-4), (b["step"], name)
    saved = sorted(path.name for path in (ranks / "run").iterdir())
    assert saved == sorted(path.name for path in (tmp_path / "run").iterdir())


def test_a_rank_beside_the_first_leaves_the_folder_alone(tmp_path, monkeypatch):
    """The first one asks for a new folder, sooner or later than others get to training."""

    class Reached(Exception):
        pass

    def reach(*args, **kwargs):
        raise Reached

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("pyramid.training.make_trainer", reach)
    with pytest.raises(Reached):
        train_tokenizer(tiny_run.config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
