"""The attention function that backbones of transformers call: dropout, and what it must refuse."""

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, Gemma2Config, MistralConfig

from lm import attention
from pyramid import ops

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}


def causal(length):
    stop = torch.arange(1, length + 1)
    return torch.stack([torch.zeros_like(stop), stop, stop, stop], dim=-1)[None]


def backbone(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention.register()).eval().base_model


def test_dropout_drops_attention_weights_of_what_is_seen():
    query, key, value = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    intervals = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1], [0, 3, 5, 7], [0, 7, 2, 4], [2, 4, 3, 6]]).expand(2, -1, -1)
    expected = ops.interval_attention(query, key, value, intervals).transpose(1, 2)
    kept, none = attention._attend(None, query, key, value, None, dropout=1e-12, intervals=intervals)
    torch.testing.assert_close(kept, expected)
    rows = [attention._attend(None, query, key, value, None, dropout=0.5, intervals=intervals)[0] for _ in range(3000)]
    assert not torch.equal(rows[0], rows[1]) and not rows[0][:, 0].any()
    torch.testing.assert_close(torch.stack(rows).mean(dim=0), expected, atol=0.15, rtol=0)  # over 5 standard errors


def test_dropout_of_a_backbone_in_training_only():
    config = MistralConfig(vocab_size=50, num_key_value_heads=2, sliding_window=None, attention_dropout=0.5, **SHAPE)
    model = backbone(config)
    inputs = {"inputs_embeds": torch.randn(1, 6, 32), "intervals": causal(6)}
    assert torch.equal(model(**inputs).last_hidden_state, model(**inputs).last_hidden_state)
    model.train()
    assert not torch.equal(model(**inputs).last_hidden_state, model(**inputs).last_hidden_state)


def test_a_cap_on_the_scores_is_refused():
    config = Gemma2Config(vocab_size=50, num_key_value_heads=2, sliding_window=64, **SHAPE)
    with pytest.raises(ValueError, match="expected a backbone of plain attention, got one with softcap"):
        backbone(config)(inputs_embeds=torch.randn(1, 6, 32), intervals=causal(6))
    config.attn_logit_softcapping = None
    backbone(config)(inputs_embeds=torch.randn(1, 6, 32), intervals=causal(6))


def test_a_window_shorter_than_the_sequence_is_refused():
    model = backbone(MistralConfig(vocab_size=50, num_key_value_heads=2, sliding_window=8, **SHAPE))
    x, cache = torch.randn(1, 9, 32), DynamicCache()
    model(inputs_embeds=x[:, :8], intervals=causal(8), past_key_values=cache, use_cache=True)
    message = "the backbone sees no further than 8 tokens, expected as many as the sequence has, 9"
    with pytest.raises(ValueError, match=message):
        model(inputs_embeds=x, intervals=causal(9))
    with pytest.raises(ValueError, match=message):
        model(inputs_embeds=x[:, 8:], intervals=causal(9)[:, 8:], past_key_values=cache, use_cache=True)
