"""The parts of the quickstart with a language model that always says the same: the counting is what is tested."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from lm.backbone import LMConfig
from pyramid.data import grammar
from pyramid.tokenizer import PyramidTokenizer, TokenizerConfig
from tasks import showcase
from tasks.console import Console
from tasks.judge import wanted
from tasks.report import write_report


@dataclass
class Parrot:
    """Captions with the given sentences in turn, and generates what the tokenizer makes of the clips themselves."""

    tokenizer: PyramidTokenizer
    sentences: dict[int, list[str]]
    config: LMConfig = field(default_factory=LMConfig)

    def caption(self, tokens, detail=None):
        pool = self.sentences.get(tokens.batch_size) or next(iter(self.sentences.values()))
        return pool[: tokens.batch_size]

    def generate(self, prompts, seed):
        assert all(grammar.parse(prompt) for prompt in prompts)
        return self.tokenizer.encode(torch.zeros(len(prompts), 3, 9, 32, 32))


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return PyramidTokenizer(TokenizerConfig(channels=(8, 16), depths=(1, 1), dim=32, depth=1)).eval()


def test_captions_are_counted_by_all_four_attributes(tokenizer, tmp_path):
    items = showcase.held_out("test", 8, tokenizer)
    said = [item["caption"] for item in items]
    true = [wanted(item["attributes"]) for item in items]
    said[0] = said[0].replace(true[0]["shape"], "ring" if true[0]["shape"] != "ring" else "star")
    said[1] = said[1].replace(true[1]["colour"], "cyan" if true[1]["colour"] != "cyan" else "red")
    parrot = Parrot(tokenizer, {8: said})
    part = showcase.show_captions(parrot, tmp_path / "clips", count=8, shown=2)
    assert part.figures["exact_match"] == 6 / 8
    assert part.figures["by_attribute"] == {"shape": 7 / 8, "colour": 7 / 8, "size": 1.0, "motion": 1.0}
    assert part.figures["n"] == 8
    assert 0 < part.figures["tokens_read"] < part.figures["tokens_total"]
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == ["combinations", "test"]
    assert len(list((tmp_path / "clips" / "test").glob("*.mp4"))) == 8


def test_generated_clips_are_counted_by_detail(tokenizer, tmp_path):
    items = showcase.held_out("test", 4, tokenizer)
    calls = []

    class Kinder:
        """Sees one clip more as asked at every detail."""

        def attributes(self, video):
            calls.append(video.shape)
            blank = {"shape": "", "colour": "", "motion": ""}
            return [wanted(item["attributes"]) if i < len(calls) else blank for i, item in enumerate(items)]

    part = showcase.show_generation(Parrot(tokenizer, {}), Kinder(), seed=0, count=4, shown=2)
    assert part.figures["attribute_accuracy_by_detail"] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert calls == [(4, 3, 9, 32, 32)] * 5
    write_report(tmp_path / "r.html", "x", [part.section])
    assert (tmp_path / "r.html").read_text().count("data:image/png") == 10


def test_a_small_tokenizer_trains_and_is_measured(tmp_path):
    part, small = showcase.train_small(tmp_path / "t", minutes=0.1, seed=0, console=Console("test"))
    assert part.figures["steps"] >= 1
    shown = showcase.show_reconstruction(small, "x", count=4, shown=1)
    assert len(shown.figures["psnr_by_detail"]) == small.num_levels
    write_report(tmp_path / "r.html", "x", [part.section, shown.section])
