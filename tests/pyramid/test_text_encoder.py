"""Text models of each kind, through the real loading code, on small random ones saved to disk."""

import made_models
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, ViTConfig, ViTModel

from pyramid.text_encoder import TextEncoder, kind_of

KINDS = {"bert": "encoder", "t5": "encoder", "llama": "decoder", "clip": "clip"}


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    return request.param, getattr(made_models, f"make_{request.param}")(tmp_path_factory.mktemp(request.param))


def test_a_config_tells_the_kind(model):
    name, folder = model
    assert kind_of(AutoConfig.from_pretrained(folder)) == KINDS[name]
    assert TextEncoder(folder).kind == KINDS[name]


@pytest.mark.parametrize("space", ["sentence", "input"])
def test_vectors_do_not_depend_on_the_batch(model, space):
    _, folder = model
    encoder = TextEncoder(folder, space=space)
    texts = ["red", "a small red star moves left", "blue star"]
    together = encoder(texts)
    assert together.shape == (3, encoder.dim) and together.dtype == torch.float32 and not together.requires_grad
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(torch.cat([encoder([text]) for text in texts]), together, atol=1e-5, rtol=1e-4)
    assert (together[0] - together[2]).norm() > 1e-3
    assert encoder([]).shape == (0, encoder.dim) and encoder([""]).isfinite().all()
    assert encoder(["red star " * 200]).isfinite().all()  # longer than the model reads


def unit(x):
    return torch.nn.functional.normalize(x, dim=-1)


@torch.no_grad()
def test_what_stands_for_a_text(model):
    """By the model's own forward, one text, no padding."""
    name, folder = model
    net, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    text = "a red star"

    def ids(text, **options):
        return torch.tensor([tokenizer(text, **options)["input_ids"]])

    if name == "llama":
        prompt = f'This sentence : "{text}" means in one word:"'
        expected = net(input_ids=ids(prompt)).last_hidden_state[:, -1]
    elif name == "clip":
        features = net.get_text_features(input_ids=ids(text))
        expected = features if isinstance(features, torch.Tensor) else features.pooler_output
    else:
        tower = net.get_encoder() if name == "t5" else net
        expected = tower(input_ids=ids(text)).last_hidden_state.mean(dim=1)
    torch.testing.assert_close(TextEncoder(folder)([text]), unit(expected), atol=1e-5, rtol=1e-4)
    table = (net.text_model if name == "clip" else net).get_input_embeddings()
    expected = table(ids(text, add_special_tokens=False)).mean(dim=1)
    torch.testing.assert_close(TextEncoder(folder, space="input")([text]), unit(expected), atol=1e-5, rtol=1e-4)


def test_whole_words_are_told_from_pieces(model):
    name, folder = model
    words = TextEncoder(folder).whole_words()
    assert len(set(words)) == len(words)
    if name == "bert":
        assert words == ["red", "star", "moves", "blue", "stars", "small", "left"]  # no piece, no "Left", no "x1"
    elif name == "t5":
        assert words == ["red", "star", "moves", "blue"]
    else:  # trained on three sentences: their words are in the vocabulary, beside pieces of them
        assert {"star", "small", "blue"} <= set(words)
        assert all(word.isalpha() and word.islower() for word in words)
        pieces = {"ackground", "otted", "ircle", "ackgroun", "ste"}  # ends and middles of words
        assert not pieces & set(words)


def test_what_is_no_text_model_is_refused(tmp_path):
    ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match="expected a model of text, got one of type 'vit'"):
        kind_of(AutoConfig.from_pretrained(tmp_path))
    with pytest.raises(FileNotFoundError, match="transformers text model, got expected a model of text"):
        TextEncoder(tmp_path)
    with pytest.raises(FileNotFoundError, match="TextEncoder: nowhere/model: expected the folder or hub id"):
        TextEncoder("nowhere/model")
    with pytest.raises(ValueError, match="space must be sentence or input, got 'latent'"):
        TextEncoder(tmp_path, space="latent")
