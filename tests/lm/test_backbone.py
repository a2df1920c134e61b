"""Backbones: adapters on a pretrained one, checkpointing and the fused loss give what the plain ways give."""

import dataclasses

import pytest
import torch
from torch import nn

from lm.backbone import LMConfig, make_backbone
from lm.linear_cross_entropy import linear_cross_entropy
from lm.model import PyramidLM
from lm.train import LMTraining, TrainLMConfig, train_lm
from lm.vocabulary import train_text_tokenizer
from pyramid.config import load
from pyramid.tokenizer import PyramidTokenizer, TokenizerConfig

MODEL = TokenizerConfig(channels=(8, 16, 24), depths=(0, 1, 1), dim=32, depth=1, latent_dim=16)
CAPTIONS = ["a small red star moves left", "a large blue ring bounces"]


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    return PyramidTokenizer(MODEL).eval()


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A small causal LM of another architecture than ours, with biases, saved as transformers does."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("base")
    shape = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(vocab_size=300, num_key_value_heads=2, tie_word_embeddings=True, **shape)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    train_text_tokenizer(CAPTIONS, 300).save_pretrained(folder)
    return folder


def make(tokenizer, config):
    from transformers import AutoTokenizer

    text = AutoTokenizer.from_pretrained(config.backbone)
    return PyramidLM(config, tokenizer, text, make_backbone(config, len(text)))


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return tokenizer.encode(torch.rand(2, 3, 9, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1)


def losses(lm, tokens):
    sentences = [lm.text_ids(caption) for caption in CAPTIONS]
    levels = lm.generation_loss(tokens, sentences, lm.num_levels, torch.Generator().manual_seed(0))
    return sum(levels.values()) + lm.reading_loss(tokens.truncate(2), sentences, 2)


def test_adapters_alone_are_trained(tokenizer, tokens, pretrained):
    lm = make(tokenizer, LMConfig(backbone=str(pretrained), lora=4)).train()
    base = {name: p for name, p in lm.backbone.named_parameters() if "lora_" not in name}
    adapters = {name: p for name, p in lm.backbone.named_parameters() if "lora_" in name}
    assert (
        adapters and all(p.requires_grad for p in adapters.values()) and not any(p.requires_grad for p in base.values())
    )
    before = {name: p.clone() for name, p in lm.backbone.named_parameters()}
    module = LMTraining(load(TrainLMConfig), lm)
    optimizer = module.configure_optimizers()[0]
    first = losses(lm, tokens)
    for _ in range(30):
        optimizer.zero_grad()
        losses(lm, tokens).backward()
        optimizer.step()
    assert losses(lm, tokens) < 0.8 * first
    for name, parameter in lm.backbone.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in base), name


def test_adapters_go_to_a_peft_folder_and_come_back(tokenizer, tokens, pretrained, tmp_path):
    import peft
    from transformers import AutoModelForCausalLM

    torch.manual_seed(2)
    lm = make(tokenizer, LMConfig(backbone=str(pretrained), lora=4)).eval()
    for name, parameter in lm.backbone.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.1)
    lm.save_pretrained(tmp_path / "lm")
    names = {path.name for path in (tmp_path / "lm" / "backbone").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names and "model.safetensors" not in names
    again = PyramidLM.from_pretrained(tmp_path / "lm", tokenizer=tokenizer)
    with torch.no_grad():
        assert torch.equal(losses(again, tokens), losses(lm, tokens))
    # Peft itself reads it on the base model.
    base = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(pretrained), tmp_path / "lm" / "backbone"
    )
    theirs = {name.removeprefix("base_model.model."): value for name, value in base.state_dict().items()}
    ours = lm.backbone.state_dict()
    assert all(torch.equal(theirs[name], value) for name, value in ours.items() if "lora_" in name)
    # Merged, it needs neither.
    with torch.no_grad():
        expected = losses(lm, tokens)
        merged = lm.merged()
        torch.testing.assert_close(losses(merged, tokens), expected, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    alone = PyramidLM.from_pretrained(tmp_path / "merged", tokenizer=tokenizer)
    assert alone.config.lora == 0 and not any("lora_" in name for name in alone.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(losses(alone, tokens), expected, atol=1e-4, rtol=1e-4)


def test_a_run_with_adapters(tokenizer, pretrained, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    small = {
        "tokenizer": str(tmp_path / "tokenizer"),
        "model": {"backbone": str(pretrained), "lora": 2},
        "data": {"num_clips": 8, "num_val": 2},
        "run": {"max_minutes": 0, "max_steps": 3, "batch_size": 2, "val_every": 100, "val_batches": 1},
        "checkpointing": True,
    }
    config = load(TrainLMConfig, small, overrides=["run.precision=fp32", "run.device=cpu"])
    out = train_lm(config, tmp_path / "lm")
    lm = PyramidLM.from_pretrained(out)
    assert lm.generate(["a star"], 2).num_levels == 2


def test_adapters_need_something_to_adapt():
    with pytest.raises(ValueError, match="lora: expected 0, or a rank and a pretrained backbone, got 4 and None"):
        LMConfig(lora=4)


@pytest.mark.parametrize("kind", ["llama", "pretrained"])
def test_checkpointing_changes_no_gradient(tokenizer, tokens, pretrained, kind):
    torch.manual_seed(0)
    if kind == "llama":
        config = LMConfig(dim=32, num_layers=2, num_heads=2, mlp=48, text_size=300)
        text = train_text_tokenizer(CAPTIONS, 300)
        lm = PyramidLM(config, tokenizer, text, make_backbone(config, len(text))).train()
    else:
        lm = make(tokenizer, LMConfig(backbone=str(pretrained))).train()
    losses(lm, tokens).backward()
    plain = {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}  # no hint, no copy of it
    lm.zero_grad()
    config = dataclasses.replace(load(TrainLMConfig), checkpointing=True)
    LMTraining(config, lm)
    assert lm.backbone.is_gradient_checkpointing
    losses(lm, tokens).backward()
    again = {name: p.grad for name, p in lm.named_parameters() if p.grad is not None}
    assert again.keys() == plain.keys()
    for name, gradient in again.items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_the_fused_loss_is_the_plain_one(dtype, rows, monkeypatch):
    monkeypatch.setattr("lm.linear_cross_entropy._LOGITS", 5000)  # several pieces
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 16, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(101, 16, generator=generator).requires_grad_()
    target = torch.randint(101, (rows,), generator=generator)
    target[::3] = -100
    fused = linear_cross_entropy(hidden, weight, target)
    (3 * fused).backward()
    mine = [hidden.grad.clone(), weight.grad.clone()]
    hidden.grad = weight.grad = None
    logits = (hidden @ weight.T.to(dtype)).float()
    plain = nn.functional.cross_entropy(logits, target, reduction="sum") / (target != -100).sum().clamp(min=1)
    (3 * plain).backward()
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 3e-2, "rtol": 3e-2}
    torch.testing.assert_close(fused, plain, **tolerance)
    for a, b in zip(mine, [hidden.grad, weight.grad], strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def test_the_fused_loss_holds_no_logits():
    """Peak of what torch allocates at once: the plain loss holds all logits, several times."""
    from torch.profiler import ProfilerActivity, profile

    hidden = torch.randn(2048, 32, requires_grad=True)
    weight = torch.randn(16384, 32, requires_grad=True)
    target = torch.randint(16384, (2048,))

    def largest(loss):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            loss().backward()
        return max(event.cpu_memory_usage for event in found.events())

    logits = 2048 * 16384 * 4
    assert largest(lambda: linear_cross_entropy(hidden, weight, target)) < logits / 4
    assert largest(lambda: nn.functional.cross_entropy(hidden @ weight.T, target)) >= logits


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"expected hidden \(N, D\), weight \(V, D\), target \(N,\), got \(2, 3\)"):
        linear_cross_entropy(torch.zeros(2, 3), torch.zeros(5, 4), torch.zeros(2, dtype=torch.int64))


@torch.no_grad()
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_quick_forward_is_transformers_own(kv_heads):
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    from lm import quick
    from lm.attention import register

    torch.manual_seed(0)
    shape = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=50, num_key_value_heads=kv_heads, **shape)
    config._attn_implementation = register()
    backbone = LlamaForCausalLM(config).eval()
    for parameter in backbone.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    assert quick.usable(backbone)
    ours, theirs = DynamicCache(), DynamicCache()
    start = 0
    for count in (5, 1, 7):
        x = torch.randn(2, count, 48)
        places = torch.arange(start, start + count).expand(2, -1)
        stop = torch.full_like(places, start + count)
        intervals = torch.stack([torch.zeros_like(stop), stop, stop, stop], dim=-1)
        expected = backbone.base_model(
            inputs_embeds=x, intervals=intervals, position_ids=places, past_key_values=theirs, use_cache=True
        ).last_hidden_state
        if count == 7:  # some of the tokens alone
            take = torch.tensor([[6, 1], [0, 3]])
            found = quick.pack(backbone)(x, intervals, places, ours, take)
            torch.testing.assert_close(found, quick.picked(expected, take), atol=1e-5, rtol=1e-4)
            continue
        torch.testing.assert_close(
            quick.pack(backbone)(x, intervals, places, ours, None), expected, atol=1e-5, rtol=1e-4
        )
        start += count


def test_the_quick_forward_is_for_plain_llamas(pretrained):
    from transformers import AutoModelForCausalLM

    from lm import quick
    from lm.backbone import add_adapters

    plain = make_backbone(LMConfig(dim=32, num_layers=1, num_heads=2, mlp=32), 60)
    assert quick.usable(plain)
    assert not quick.usable(AutoModelForCausalLM.from_pretrained(pretrained))
    assert not quick.usable(add_adapters(plain, 2))
