"""Training the words of a tokenizer alone: what they say of a clip, without a look at how it is decoded.

Which words a chunk is read to have is learned from many clips, and the longer part of a step of `TokenizerTraining`,
the decoder, has no part in it. Handwriting, 36 minutes on one core: words tell nine in ten characters, where they told
one in twenty-five (docs/experiments.md).
"""

from __future__ import annotations

from torch import Tensor, nn

from pyramid.train import TokenizerTraining, TrainTokenizerConfig
from pyramid.training import TrainingModule


class WordTraining(TokenizerTraining):
    """The reader of words learns, and with `learns` "words" the encoder, but for the map to its latent. All else stays
    as it was. Validation tells `words_hit`. Raises ValueError for a tokenizer without a reader of words."""

    def __init__(self, config: TrainTokenizerConfig) -> None:
        super().__init__(config)
        tokenizer = self.tokenizer
        if self.semantic is None or tokenizer.reader is None:
            raise ValueError(f"learns: expected levels of words and a reader of them for {config.learns!r}, got none")
        encoder = tokenizer.encoder
        fixed = (encoder.head, encoder.linear, encoder.norm) if config.learns == "words" else (encoder,)
        for module in fixed:
            if module is not None:
                module.requires_grad_(False)

    def objective(self, batch: dict) -> Tensor:
        video, seen = self.jittered(batch)
        video, seen = self._whole_chunks(video), self._whole_chunks(seen)
        loss, hit = self.meaning(self.tokenizer.read_words(seen), video, batch)
        figures = {"train/loss": loss.detach(), "train/semantic": loss.detach(), "train/words_hit": hit}
        self.log_dict(figures, batch_size=len(video))
        return loss

    def training_step(self, batch: dict, batch_idx: int) -> None:
        TrainingModule.training_step(self, batch, batch_idx)

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        with self.exact():
            tokens = self.tokenizer.encode(batch["video"], self.tokenizer.word_levels[-1] + 1)
        self.val_hits += self.words_hit(tokens, batch["caption"])

    def inside(self) -> tuple[nn.Module, ...]:
        return (self.tokenizer.encoder, self.tokenizer.reader)
