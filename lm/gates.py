"""The gates before a language model's run: one clip learned by heart, then sixteen. What was learned is asked back as
it will be used: each block drawn greedily after true ones, and the caption read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from pyramid.gates import Gate, GateError

if TYPE_CHECKING:
    from lm.train import LMTraining
    from pyramid.tokens import TokenPyramid

_LOOK_EVERY = 25


@dataclass(frozen=True)
class LMGateConfig:
    """The share of the tokens that must come back, after at most so many steps. Of several clips the first blocks may
    be anyone's where captions are alike, so less is asked of sixteen."""

    one_accuracy: float = 0.99
    one_steps: int = 400
    sixteen_accuracy: float = 0.9
    sixteen_steps: int = 800

    def __post_init__(self) -> None:
        for name in ("one_steps", "sixteen_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


def climb(
    config: LMGateConfig,
    tokens: TokenPyramid,
    captions: list[str],
    make_module: Callable[[], LMTraining],
    report: Callable[[Gate], None],
) -> None:
    """Both gates, over the first clips of `tokens`; `make_module` gives an untrained module of the run's config. Raises
    GateError at the first that is not passed."""
    several = min(16, tokens.batch_size)
    for count, wanted, steps in (
        (1, config.one_accuracy, config.one_steps),
        (several, config.sixteen_accuracy, config.sixteen_steps),
    ):
        name = {1: "one clip", 16: "sixteen clips"}.get(count, f"{count} clips, all there are,")
        rows = slice(0, count)
        report(check_overfit(f"{name} by heart", make_module(), tokens[rows], captions[rows], wanted, steps))


def check_overfit(
    name: str, module: LMTraining, tokens: TokenPyramid, captions: list[str], wanted: float, steps: int
) -> Gate:
    """Train on some clips alone, all blocks hidden, until a share `wanted` of their tokens comes back. Raises GateError
    where that takes more than `steps` steps, or where the loss is no number."""
    lm = module.lm
    tokens = tokens.to(lm.device)
    sentences = [lm.text_ids(caption) for caption in captions]
    optimizer = module.configure_optimizers()[0]
    rates = [(group, group["lr"]) for group in optimizer.param_groups]
    accuracy = 0.0
    for step in range(1, steps + 1):
        for group, rate in rates:
            group["lr"] = rate * min(1.0, step / 20)
        losses = lm.generation_loss(tokens, sentences, lm.num_levels, whole=1.0)
        loss = torch.stack(list(losses.values())).mean()
        if "caption" in lm.config.tasks and any(captions):
            loss = loss + lm.reading_loss(
                tokens.truncate(lm.config.caption_detail), sentences, lm.config.caption_detail
            )
        if not loss.isfinite():
            raise GateError(
                f"gate not passed: {name}: expected a loss that is a number, got {loss.item()} in step {step}"
            )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        if step % _LOOK_EVERY == 0 or step == steps:
            accuracy, said = _look(module, tokens, captions)
            if accuracy >= wanted:
                found = f"{accuracy:.1%} of the tokens{said} after {step} steps, {wanted:.0%} expected"
                return Gate(name, found)
    raise GateError(
        f"gate not passed: {name}: expected at least {wanted:.0%} of the tokens after {steps} steps, got "
        f"{accuracy:.1%}; what cannot be learned by heart cannot be learned: look at run.learning_rate and model "
        "before adding data or time"
    )


def _look(module: LMTraining, tokens: TokenPyramid, captions: list[str]) -> tuple[float, str]:
    """The share of tokens that come back, and what is to be said of captions."""
    lm = module.lm.eval()
    drawn = lm.generate(
        captions,
        num_frames=tokens.num_frames,
        size=(tokens.height, tokens.width),
        forced=tokens,
        decoder="next-level",
        temperature=0,
        guidance=1.0,
    )
    accuracy = (drawn.flatten() == tokens.flatten()).float().mean().item()
    said = ""
    if "caption" in lm.config.tasks and any(captions):
        right = sum(a == b for a, b in zip(lm.caption(tokens), captions, strict=True))
        said = f" and {right} of {len(captions)} captions"
    lm.train()
    return accuracy, said
