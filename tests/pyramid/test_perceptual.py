"""The perceptual loss on the features of small random models that lie on the disk, as a user's would."""

import copy
import json

import pytest
import tiny_run
import torch
import transformers as hf

from pyramid.perceptual import PerceptualConfig, PerceptualLoss, Preparation
from pyramid.train import TokenizerTraining

VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 8}
PROCESSOR = {"do_resize": True, "do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}


def save(folder, kind):
    """A random model of a kind and the config of its processor."""
    torch.manual_seed(0)
    values = {**PROCESSOR, "size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": 32}
    if kind == "vit":
        model = hf.ViTModel(hf.ViTConfig(image_size=32, **VIT))
        values = {**PROCESSOR, "size": {"height": 32, "width": 32}}
    elif kind == "clip":
        text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        both = {"vision_config": {**VIT, "image_size": 32}, "text_config": {**text, "vocab_size": 20}}
        model = hf.CLIPModel(hf.CLIPConfig(**both))
    elif kind == "convnext":
        model = hf.ConvNextModel(hf.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]))
    else:
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
        model = hf.ResNetModel(hf.ResNetConfig(**sizes, layer_type="basic"))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return str(folder)


@pytest.mark.parametrize("kind", ["vit", "clip", "convnext", "resnet"])
def test_features_of_every_kind_of_model(tmp_path, kind):
    loss = PerceptualLoss(PerceptualConfig(save(tmp_path, kind), frames=0))
    video = torch.rand(2, 3, 3, 24, 40) * 2 - 1
    near, far = video + 0.01 * torch.randn_like(video), torch.rand_like(video) * 2 - 1
    assert loss(video, video).item() == pytest.approx(0, abs=1e-6)
    assert 0 < loss(near, video) < 0.3 * loss(far, video)
    near.requires_grad_()
    loss(near, video).backward()
    assert near.grad.isfinite().all() and near.grad.abs().sum() > 0
    assert all(not p.requires_grad for p in loss.model.parameters()) and not loss.model.training


def test_layers_and_frames_are_chosen(tmp_path):
    name = save(tmp_path, "vit")
    video, other = torch.rand(2, 3, 6, 32, 32), torch.rand(2, 3, 6, 32, 32)
    each = [PerceptualLoss(PerceptualConfig(name, (layer,), 0))(video, other) for layer in range(3)]
    assert len({x.item() for x in each}) == 3
    torch.testing.assert_close(PerceptualLoss(PerceptualConfig(name, (), 0))(video, other), sum(each) / 3)
    torch.testing.assert_close(PerceptualLoss(PerceptualConfig(name, (-1,), 0))(video, other), each[-1])
    some = PerceptualLoss(PerceptualConfig(name, (), 2))
    draws = {some(video, other, torch.Generator().manual_seed(seed)).item() for seed in range(6)}
    assert len(draws) > 1
    twice = [some(video, other, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*twice)


@pytest.mark.parametrize(
    ("values", "shape", "expected"),
    [
        ({"size": {"height": 20, "width": 30}}, (10, 10), (20, 30)),
        ({"size": 24}, (10, 20), (24, 24)),
        ({"size": {"shortest_edge": 16}}, (8, 12), (16, 24)),
        ({"size": {"shortest_edge": 16}, "do_center_crop": True, "crop_size": 12}, (8, 12), (12, 12)),
        ({"do_resize": False, "size": 24}, (10, 20), (10, 20)),
    ],
)
def test_frames_are_prepared_as_the_processor_says(values, shape, expected):
    prepared = Preparation.of({**PROCESSOR, **values})(torch.ones(2, 3, *shape))
    assert tuple(prepared.shape[-2:]) == expected
    for channel in range(3):  # white is 1
        wanted = (1 - PROCESSOR["image_mean"][channel]) / PROCESSOR["image_std"][channel]
        torch.testing.assert_close(prepared[:, channel], torch.full((2, *expected), wanted), atol=1e-5, rtol=0)
    plain = Preparation.of({"do_normalize": False, "do_resize": False})(torch.zeros(1, 3, 4, 4))
    assert torch.equal(plain, torch.full((1, 3, 4, 4), 0.5))


def test_training_takes_it_and_keeps_it_out_of_the_weights(tmp_path):
    overrides = ["loss.perceptual=0.5", f"perceptual.model={save(tmp_path, 'vit')}", "perceptual.frames=2"]
    module = TokenizerTraining(tiny_run.config(*overrides, "loss.adversarial=0"))
    logged = {}
    module.log_dict = lambda values, **_: logged.update(values)
    module.objective({"video": torch.rand(2, 3, 5, 16, 16) * 2 - 1, "caption": ["", ""]}).backward()
    assert logged["train/perceptual"] > 0
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"tokenizer"}
    assert copy.deepcopy(module).perceptual is module.perceptual


def test_errors_name_the_model(tmp_path):
    with pytest.raises(ValueError, match="expected a folder or hub id of a vision model, got none"):
        PerceptualLoss(PerceptualConfig())
    with pytest.raises(ValueError, match="nowhere: expected a vision model with its processor's config, got: "):
        PerceptualLoss(PerceptualConfig(str(tmp_path / "nowhere")))
    (tmp_path / "vit").mkdir()
    name = save(tmp_path / "vit", "vit")
    with pytest.raises(ValueError, match=r"perceptual.layers: expected numbers from -3 to 2, got 3"):
        PerceptualLoss(PerceptualConfig(name, (3,)))
    text = hf.BertConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    hf.BertModel(text).save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ValueError, match="takes pixel_values, got BertModel, which takes input_ids"):
        PerceptualLoss(PerceptualConfig(str(tmp_path / "bert")))
