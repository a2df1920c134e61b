"""A level that uses few codes is told of, once, with what is on against it."""

import pytest
import tiny_run
import torch

from pyramid.collapse import CollapseWarning, CollapseWatch, fullness, sentence
from pyramid.metrics import CodeUsage
from pyramid.quantize import BitQuantizer, FSQQuantizer, VectorQuantizer, WordQuantizer
from pyramid.train import LossConfig, TokenizerTraining, train_tokenizer
from pyramid.words import WordTable


def counted(size, ids):
    usage = CodeUsage(size)
    usage.update(torch.as_tensor(ids))
    return usage


def test_what_is_full_depends_on_how_many_tokens_there_were():
    assert fullness(counted(1 << 18, range(500))) == pytest.approx(1)  # no more can be had of 500 tokens
    assert fullness(counted(16, list(range(16)) * 50)) == pytest.approx(1)
    assert fullness(counted(4096, [3] * 500)) == 0
    assert fullness(counted(4096, [1, 2] * 500)) == pytest.approx(0.1, abs=0.01)
    assert fullness(CodeUsage(4096)) == 1 and fullness(counted(4096, [5])) == 1


def test_it_is_told_once_when_it_starts():
    fine, bad = counted(64, range(64)), counted(64, [1] * 63 + [2])
    watch = CollapseWatch(2)
    seen = [watch([fine, level]) for level in (bad, fine, bad, bad, bad, fine, bad, bad)]
    assert seen == [[], [], [], [1], [], [], [], [1]]
    again = CollapseWatch(2)
    again.load_state_dict(watch.state_dict())
    assert again([fine, bad]) == [] and again([bad, bad]) == []  # told of before the run was resumed


@pytest.mark.parametrize(
    ("quantizer", "loss", "wanted"),
    [
        (BitQuantizer(12), LossConfig(), "entropy weight 0.1, not annealed, level dropout, 50% of clips; try anneal"),
        (BitQuantizer(12), LossConfig(entropy_boost=3), "entropy weight 0.1, annealed from 0.3, level dropout"),
        (BitQuantizer(12, entropy=0), LossConfig(entropy=0), "50% of clips; try an entropy weight (loss.entropy=0.1)"),
        (VectorQuantizer(64, 4), LossConfig(full_detail=1), "dead codes restart after 20 expected uses; try fewer"),
        (FSQQuantizer((5, 4, 3)), LossConfig(), "no table to collapse, level dropout, 50% of clips; try fewer fsq"),
        (WordQuantizer(WordTable.load()), LossConfig(), "semantic weight 2, level dropout"),
        (WordQuantizer(WordTable.load()), LossConfig(semantic=0, full_detail=1), "nothing; try a semantic objective"),
    ],
)
def test_one_sentence_with_the_remedy(quantizer, loss, wanted):
    text = sentence(2, counted(quantizer.codebook_size, [0] * 97 + [1, 2, 3]), quantizer, loss)
    assert text.startswith(f"level 3 uses 4 of {quantizer.codebook_size:,} codes (perplexity 1.2 over 100 tokens); on")
    assert wanted in text and "\n" not in text


def test_a_run_says_so(tmp_path, monkeypatch):
    """Every code of the bit level is forced to be the same."""
    once = BitQuantizer.quantize

    def collapsed(self, x):
        return once(self, x * 0 - 1)

    monkeypatch.setattr(BitQuantizer, "quantize", collapsed)
    config = tiny_run.config("run.max_steps=7", "run.warmup_steps=3", "loss.adversarial=0", "run.val_every=100")
    with pytest.warns(CollapseWarning, match=r"level 4 uses 1 of 1,024 codes \(perplexity 1.0") as warned:
        train_tokenizer(config, tmp_path)
    assert sum(str(w.message).startswith("level 4") for w in warned) == 1  # of four chances


def test_usage_of_many_ids_is_merged():
    module = TokenizerTraining(tiny_run.config())
    module.usage[3].update(torch.tensor([1, 1, 2]))
    module.usage[3].merge({2: 4, 900: 1})
    assert module._joint_usage()[3].counts == {1: 2, 2: 5, 900: 1} and module.usage[3].num_tokens == 8
