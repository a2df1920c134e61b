"""The gates before a training run: clips in range, one clip learned by heart, then sixteen. A model that cannot copy
one clip will not learn from a million, and minutes show it.

What is learned by heart is asked back through `encode` and `decode`, so that a gate sees what a user of the model
would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyramid.data.datamodule import collate_clips
from pyramid.metrics import psnr

if TYPE_CHECKING:
    from pyramid.tokenizer import PyramidTokenizer
    from pyramid.tokens import TokenPyramid
    from pyramid.train import TokenizerTraining

_RANGE_CLIPS, _LOOK_EVERY = 32, 20


@dataclass(frozen=True)
class GateConfig:
    """PSNR in dB at full detail that the clips must come back with, and the share of their captions' words that must be
    named, of those that the word levels have room for (where there are such levels and captions), after at most so many
    steps."""

    one_psnr: float = 30.0
    one_steps: int = 400
    sixteen_psnr: float = 24.0
    sixteen_steps: int = 600
    words: float = 0.9

    def __post_init__(self) -> None:
        for name in ("one_steps", "sixteen_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


class GateError(ValueError):
    """A gate that was not passed: which, what was expected, what came."""


@dataclass(frozen=True)
class Gate:
    """A gate that was passed."""

    name: str
    found: str

    def sentence(self) -> str:
        return f"gate passed: {self.name}: {self.found}"


def climb(
    config: GateConfig, dataset: Any, make_module: Callable[[], TokenizerTraining], report: Callable[[Gate], None]
) -> None:
    """All gates in order, over the first clips of `dataset`; `make_module` gives an untrained module of the run's
    config. Raises GateError at the first that is not passed."""
    items = [dataset[index] for index in range(min(_RANGE_CLIPS, len(dataset)))]
    report(check_range(torch.stack([item["video"] for item in items])))
    several = min(16, len(items))
    for count, wanted, steps in (
        (1, config.one_psnr, config.one_steps),
        (several, config.sixteen_psnr, config.sixteen_steps),
    ):
        name = {1: "one clip", 16: "sixteen clips"}.get(count, f"{count} clips, all there are,")
        report(check_overfit(name, make_module(), items[:count], wanted, config.words, steps))


def check_range(video: Tensor) -> Gate:
    """Video (N, 3, T, H, W) as a run would see it. Raises GateError unless it is finite, uses [-1, 1] and shows
    something."""
    name = "input range"
    low, high = (value.item() for value in video.float().aminmax())
    deviation = video.float().std().item()
    found = f"values from {low:.3g} to {high:.3g}, deviation {deviation:.2g}, in {len(video)} clips"
    if not (low >= -1.001 and high <= 1.001):  # negated, so that NaN is refused too
        raise GateError(f"gate not passed: {name}: expected pixels in [-1, 1], got {found}")
    if low > -0.05:
        raise GateError(f"gate not passed: {name}: expected pixels in [-1, 1], got {found}, which looks like [0, 1]")
    if deviation < 0.01:
        raise GateError(f"gate not passed: {name}: expected clips that show something, got {found}")
    return Gate(name, found)


def check_overfit(
    name: str, module: TokenizerTraining, items: list[dict], wanted: float, words: float, steps: int
) -> Gate:
    """Train on some clips alone, at full detail and in the run's batches, until they come back with `wanted` dB and a
    share `words` of their captions' words. Raises GateError where that takes more than `steps` steps, or where the loss
    is no number."""
    name = f"{name} by heart"
    module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer to log to
    size = module.run.batch_size
    batches = [collate_clips(items[start : start + size]) for start in range(0, len(items), size)]
    batches = [module.transfer_batch_to_device(batch, module.device, 0) for batch in batches]
    optimizer = module.configure_optimizers()[0]
    groups = [(group, group["lr"]) for group in optimizer.param_groups]
    dB, hit = 0.0, None
    for step in range(1, steps + 1):
        for group, rate in groups:
            group["lr"] = rate * min(1.0, step / 20)
        loss = module.objective(batches[step % len(batches)])
        if not loss.isfinite():
            raise GateError(
                f"gate not passed: {name}: expected a loss that is a number, got {loss.item()} in step {step}"
            )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        module.step = step
        if step % _LOOK_EVERY == 0 or step == steps:
            dB, hit = _look(module, batches)
            if dB >= wanted and (hit is None or hit >= words):
                return Gate(name, f"{_figures(dB, hit)} after {step} steps, {wanted:g} dB expected")
    asked = f"at least {wanted:g} dB" + ("" if hit is None else f" and {words:.0%} of the words")
    raise GateError(
        f"gate not passed: {name}: expected {asked} after {steps} steps, got {_figures(dB, hit)}; what cannot be "
        "learned by heart cannot be learned: look at run.learning_rate, model and loss before adding data or time"
    )


def _look(module: TokenizerTraining, batches: list[dict]) -> tuple[float, float | None]:
    """PSNR of the clips through encode and decode, dB; words named, as a share of those that the word levels have room
    for, None where there are none to name."""
    tokenizer = module.tokenizer.eval()
    dB: list[float] = []
    named = room = 0.0
    for batch in batches:
        tokens = tokenizer.encode(batch["video"])
        dB += psnr(tokenizer.decode(tokens), batch["video"]).tolist()
        named += sum(module.words_hit(tokens, batch["caption"]))
        room += sum(_room(tokenizer, tokens, caption) for caption in batch["caption"])
    tokenizer.train()
    return sum(dB) / len(dB), named / room if room else None


def _room(tokenizer: PyramidTokenizer, tokens: TokenPyramid, caption: str) -> float:
    """The share of a caption's words that a chunk's word levels can name at best; 0 for a caption without any."""
    if tokenizer.table is None or not tokenizer.word_levels:
        return 0.0
    num_words = len(set(tokenizer.table.content_ids(caption)))
    num_places = sum(tokens.ids[-1][level][0].numel() for level in tokenizer.word_levels)
    return min(1.0, num_places / num_words) if num_words else 0.0


def _figures(dB: float, hit: float | None) -> str:
    return f"{dB:.1f} dB" + ("" if hit is None else f" and {hit:.0%} of the words")
