"""Adversarial training: a discriminator, its losses, and what keeps it in bounds (LeCAM, R1). Off by default.

Losses are means over clips of a rank, so that the mean over ranks is that of the joint batch; the moving averages of
LeCAM are taken over all ranks and lie in buffers, so that a run which is resumed has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

from pyramid.distributed import mean_over_ranks
from pyramid.nn.discriminator import Discriminator

Kind = Literal["non_saturating", "hinge"]


@dataclass(frozen=True)
class AdversaryConfig:
    """The discriminator's side; `loss.adversarial` is the weight on the tokenizer's side and 0 for none.

    `start`: steps of the run before it begins; `kind`: the loss, of both sides; `channels`: see `Discriminator`;
    `lecam`: weight of the LeCAM regularizer (2104.03310), with moving averages of `lecam_decay`; `r1`: weight of the
    gradient penalty on real clips (1801.04406), taken in every `r1_every`-th step at that many times its weight
    (StyleGAN2, 1912.04958, "lazy regularization"); 0 for neither."""

    start: int = 0
    kind: Kind = "non_saturating"
    learning_rate: float = 2e-4
    channels: tuple[int, ...] = (32, 64, 128, 128)
    lecam: float = 0.005
    lecam_decay: float = 0.99
    r1: float = 1.0
    r1_every: int = 4

    def __post_init__(self) -> None:
        for name, wanted, good in (
            ("start", "0 or more", self.start >= 0),
            ("kind", "non_saturating or hinge", self.kind in get_args(Kind)),
            ("learning_rate", "above 0", self.learning_rate > 0),
            ("channels", "two widths or more, each at least 1", len(self.channels) > 1 and min(self.channels) > 0),
            ("lecam", "0 or more", self.lecam >= 0),
            ("lecam_decay", "from 0 to below 1", 0 <= self.lecam_decay < 1),
            ("r1", "0 or more", self.r1 >= 0),
            ("r1_every", "at least 1", self.r1_every >= 1),
        ):
            if not good:
                raise ValueError(f"{name}: expected {wanted}, got {getattr(self, name)!r}")


def generator_loss(fake: Tensor, kind: Kind) -> Tensor:
    """Of the logits (B,) of what the tokenizer made; scalar."""
    return softplus(-fake).mean() if kind == "non_saturating" else -fake.mean()


def discriminator_loss(real: Tensor, fake: Tensor, kind: Kind) -> Tensor:
    """Of the logits (B,) of real clips and of made ones; scalar."""
    if kind == "non_saturating":
        return softplus(-real).mean() + softplus(fake).mean()
    return relu(1 - real).mean() + relu(1 + fake).mean()


def lecam_loss(real: Tensor, fake: Tensor, mean_real: Tensor, mean_fake: Tensor) -> Tensor:
    """Squared distance of each side's logits (B,) beyond the other side's moving average (2104.03310, one-sided
    as in its authors' code); scalar."""
    return relu(real - mean_fake).square().mean() + relu(mean_real - fake).square().mean()


def gradient_penalty(video: Tensor, logits: Tensor) -> Tensor:
    """R1: half the mean over clips of the squared norm of the logits' gradient by their `video`, which requires one."""
    (gradient,) = torch.autograd.grad(logits.sum(), video, create_graph=True)
    return 0.5 * gradient.square().flatten(1).sum(dim=1).mean()


class Adversary(nn.Module):
    """A discriminator with the moving averages of its logits. Both losses compute in float32."""

    def __init__(self, config: AdversaryConfig) -> None:
        super().__init__()
        self.config = config
        self.discriminator = Discriminator(config.channels)
        self.register_buffer("mean_real", torch.zeros(()))
        self.register_buffer("mean_fake", torch.zeros(()))

    def for_generator(self, fake: Tensor) -> Tensor:
        """The tokenizer's loss for the video (B, 3, T, H, W) it made; the discriminator gets no gradient of it."""
        parameters = list(self.discriminator.parameters())
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            return generator_loss(self.discriminator(fake.float()), self.config.kind)
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)

    def for_discriminator(self, real: Tensor, fake: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss in step `step`, and its terms for the log. real, fake (B, 3, T, H, W)."""
        c = self.config
        penalized = c.r1 > 0 and step % c.r1_every == 0
        real = real.detach().float().requires_grad_(penalized)
        # One pass each: the penalty's graph then holds the real half alone.
        scores, fakes = self.discriminator(real), self.discriminator(fake.detach().float())
        terms = {"loss": discriminator_loss(scores, fakes, c.kind), "real": scores.mean(), "fake": fakes.mean()}
        total = terms["loss"]
        if c.lecam > 0:
            terms["lecam"] = lecam_loss(scores, fakes, self.mean_real, self.mean_fake)
            total = total + c.lecam * terms["lecam"]
        if penalized:
            terms["r1"] = gradient_penalty(real, scores)
            total = total + c.r1 * c.r1_every * terms["r1"]
        return total, {name: value.detach() for name, value in terms.items()}

    def remember(self, terms: dict[str, Tensor]) -> None:
        """Move the averages of LeCAM by a step's terms."""
        for buffer, name in ((self.mean_real, "real"), (self.mean_fake, "fake")):
            buffer.lerp_(mean_over_ranks(terms[name]), 1 - self.config.lecam_decay)

    def optimizer(self) -> torch.optim.Optimizer:
        rate = self.config.learning_rate
        return torch.optim.Adam(self.discriminator.parameters(), lr=rate, betas=(0.0, 0.99))
