"""The discriminator, its losses and regularizers, and what it does to a step of training."""

import math

import pytest
import tiny_run
import torch

from pyramid.adversarial import (
    Adversary,
    AdversaryConfig,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    lecam_loss,
)
from pyramid.nn.discriminator import BlurPool, Discriminator
from pyramid.train import TokenizerTraining

SMALL = AdversaryConfig(channels=(4, 8, 8), r1_every=2, lecam_decay=0.5)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 8, 8), (5, 16, 24), (9, 11, 7), (2, 1, 1)])
def test_a_clip_of_any_size_gets_one_score_of_its_own(frames, height, width):
    critic = Discriminator((4, 8, 8))
    video = torch.randn(3, 3, frames, height, width)
    scores = critic(video)
    assert scores.shape == (3,)
    torch.testing.assert_close(critic(video[1:2]), scores[1:2])


def test_blur_pool_keeps_what_is_still_and_has_no_alias():
    pool = BlurPool(2, (True, True, True))
    torch.testing.assert_close(pool(torch.full((1, 2, 4, 6, 6), 0.7)), torch.full((1, 2, 2, 3, 3), 0.7))
    checkers = torch.tensor([1.0, -1.0]).repeat(8).expand(1, 2, 4, 6, 16)  # the highest frequency there is
    assert pool(checkers)[..., 1:-1].abs().max() < 1e-6
    assert BlurPool(2, (False, True, True))(checkers).shape == (1, 2, 4, 3, 8)


def test_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 3.0])
    assert generator_loss(fake, "hinge").item() == pytest.approx(-1.0)
    assert discriminator_loss(real, fake, "hinge").item() == pytest.approx(0.5 + 2.0)
    softplus = [math.log1p(math.exp(x)) for x in (-2.0, 0.0, -1.0, 3.0, 1.0, -3.0)]
    assert generator_loss(fake, "non_saturating").item() == pytest.approx((softplus[4] + softplus[5]) / 2)
    assert discriminator_loss(real, fake, "non_saturating").item() == pytest.approx(sum(softplus[:4]) / 2)
    # real beyond the average of fake (1): 1, 0; fake below the average of real (0.5): 1.5, 0
    loss = lecam_loss(real, fake, torch.tensor(0.5), torch.tensor(1.0))
    assert loss.item() == pytest.approx(1.0 / 2 + 1.5**2 / 2)


def test_r1_is_the_gradients_norm_and_reaches_the_weights():
    weight = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    video = torch.randn(4, 3, 1, 2, 2, requires_grad=True)
    penalty = gradient_penalty(video, (video * weight[:, None, None, None]).flatten(1).sum(dim=1))
    assert penalty.item() == pytest.approx(0.5 * 4 * (1 + 4 + 9))
    (gradient,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(gradient, 4 * weight.detach())


def test_each_side_trains_its_own_weights():
    torch.manual_seed(0)
    adversary = Adversary(SMALL)
    real, fake = torch.rand(2, 3, 5, 8, 8), torch.rand(2, 3, 5, 8, 8, requires_grad=True)
    adversary.for_generator(fake).backward()
    assert fake.grad.abs().sum() > 0 and all(p.grad is None for p in adversary.parameters())
    assert all(p.requires_grad for p in adversary.parameters())
    fake.grad = None
    loss, terms = adversary.for_discriminator(real, fake, 0)
    loss.backward()
    assert fake.grad is None and all(p.grad is not None for p in adversary.discriminator.parameters())
    assert terms["r1"] > 0 and "r1" not in adversary.for_discriminator(real, fake, 1)[1]  # every second step
    adversary.remember(terms)
    assert adversary.mean_real == 0.5 * terms["real"] and adversary.mean_fake == 0.5 * terms["fake"]
    assert {"mean_real", "mean_fake"} <= adversary.state_dict().keys()


@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_it_learns_to_tell_and_the_generator_to_please(kind):
    torch.manual_seed(0)
    adversary = Adversary(AdversaryConfig(channels=(8, 8, 8), kind=kind, learning_rate=1e-2))
    optimizer = adversary.optimizer()
    made = torch.zeros(8, 3, 1, 8, 8, requires_grad=True)
    for step in range(60):
        real = torch.randn(8, 3, 1, 8, 8) * 0.3 + 0.5
        loss, terms = adversary.for_discriminator(real, made, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        adversary.remember(terms)
    assert terms["real"] > terms["fake"] + 0.5
    before = adversary.for_generator(made).item()
    (gradient,) = torch.autograd.grad(adversary.for_generator(made), made)
    assert adversary.for_generator(made - 0.5 * gradient / gradient.norm()).item() < before


def test_it_is_off_by_default_and_begins_at_its_step():
    off = TokenizerTraining(tiny_run.config("loss.adversarial=0"))
    assert off.adversary is None and len(off.configure_optimizers()) == 1
    module = TokenizerTraining(tiny_run.config("adversary.start=3", "data.image_share=0"))
    logged = {}
    module.log_dict = lambda values, **_: logged.update(values)
    batch = {"video": torch.rand(2, 3, 5, 16, 16) * 2 - 1, "caption": ["", ""]}
    module.step = 2
    module.objective(batch)
    assert "train/adversarial" not in logged and module.heaviest_step() == 3
    module.step = 3
    module.objective(batch).backward()
    assert logged["train/adversarial"] > 0 and all(p.grad is None for p in module.adversary.parameters())
    own, critic = module.configure_optimizers()
    ids = [{id(p) for group in optimizer.param_groups for p in group["params"]} for optimizer in (own, critic)]
    assert ids[0].isdisjoint(ids[1])
    assert ids[0] == {id(p) for p in module.tokenizer.parameters()}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adversary.kind=wasserstein", "kind"),
        ("adversary.channels=[8]", r"channels: expected two widths or more, each at least 1, got \(8,\)"),
        ("adversary.r1_every=0", "r1_every: expected at least 1, got 0"),
        ("loss.adversarial=-1", "adversarial: expected 0 or more, got -1"),
        ("data.image_share=1.5", "image_share: expected a share from 0 to 1, got 1.5"),
        ("loss.entropy_boost=0", "entropy_boost: expected more than 0, got 0"),
    ],
)
def test_configs_that_cannot_run_are_refused(override, message):
    with pytest.raises(ValueError, match=message):
        tiny_run.config(override)


def test_a_share_of_the_steps_is_on_images():
    module = TokenizerTraining(tiny_run.config("data.image_share=0.5", "loss.adversarial=0"))
    module.log_dict = lambda *args, **kwargs: None
    batch = {"video": torch.arange(5.0)[None, None, :, None, None].expand(2, 3, 5, 16, 16) / 4, "caption": ["", ""]}
    frames, lengths = set(), []
    for module.step in range(40):
        out, video = module.reconstruct(batch)
        lengths.append(video.shape[2])
        assert out.video.shape == video.shape
        if video.shape[2] == 1:
            frames.add(video.unique().item())
    assert set(lengths) == {1, 5} and 10 < lengths.count(1) < 30
    assert len(frames) > 2  # any frame of the clip


def test_entropy_and_temperature_are_annealed():
    config = tiny_run.config("run.max_steps=100", "loss.entropy_boost=3", "loss.temperature_boost=2")
    module = TokenizerTraining(config)
    bits = module.tokenizer.levels.levels[3].quantizer
    seen = []
    for module.step in (0, 10, 20, 100):
        module._anneal()
        seen.append((bits.entropy, bits.temperature))
    assert seen == [pytest.approx(x) for x in ((0.3, 2.0), (0.2, 1.5), (0.1, 1.0), (0.1, 1.0))]
