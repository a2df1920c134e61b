"""CLIP (2103.00020) as the teacher, as in SPAE (2306.17842, section 3.2): pixels against words, no caption needed.

A clip is the mean of its frames' image embeddings. A region is read from the patch tokens: in the last block of the
image tower each token attends to itself alone (MaskCLIP, 2112.01071, keeps of that block's attention the value and
output projections in the same way), then goes through the block's MLP, the last norm and the projection as the class
token does. Trained for the class token alone, patches agree with words less well than whole frames do: a level of one
cell is scored by the frames.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyramid import ops
from pyramid.teachers.base import Batch, Teacher
from pyramid.text_encoder import TextEncoder
from pyramid.words import WordTable

# CLIP's own, for a folder without preprocessor_config.json.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipTeacher(Teacher):
    """`model`: a transformers CLIPModel, local folder or hub id. `prompt`: what a word is put in, with one {}.
    `frames`: the most frames of a clip that are looked at, evenly spaced.

    Raises FileNotFoundError where there is no such model, ValueError for one of another kind.
    """

    def __init__(
        self,
        table: WordTable,
        model: str | Path,
        *,
        prompt: str = "a photo of a {}",
        frames: int = 4,
        device: torch.device | str = "cpu",
    ) -> None:
        encoder = TextEncoder(model, device=device)
        if encoder.kind != "clip" or not hasattr(encoder.net, "visual_projection"):
            raise ValueError(f"ClipTeacher: {model}: expected a CLIP model, got a {type(encoder.net).__name__}")
        if prompt.count("{}") != 1 or frames < 1:
            raise ValueError(f"ClipTeacher: expected a prompt with one {{}} and frames >= 1, got {prompt!r}, {frames}")
        self.net: Any = encoder.net
        self.frames = frames
        self.words = encoder([prompt.format(word) for word in table.words]).to(device)
        self.size = self.net.config.vision_config.image_size
        self.mean, self.std = (torch.tensor(x, device=device).reshape(1, 3, 1, 1) for x in _normalization(model))

    def to(self, device: torch.device) -> ClipTeacher:
        super().to(device)
        self.net, self.mean, self.std = self.net.to(device), self.mean.to(device), self.std.to(device)
        return self

    @torch.no_grad()
    def embed(self, batch: Batch) -> Tensor:
        if "video" not in batch:
            raise ValueError(f"ClipTeacher: expected a batch with video, got {sorted(batch)}")
        video = batch["video"]
        picked = torch.linspace(0, video.shape[2] - 1, min(self.frames, video.shape[2])).round().long()
        tokens = self._tokens(video[:, :, picked])
        pooled = self._project(self.net.vision_model.encoder.layers[-1](tokens, None)[:, :1])
        return _unit(pooled.reshape(len(video), len(picked), -1).mean(dim=1))

    @torch.no_grad()
    def regions(self, video: Tensor, grid: Sequence[int]) -> Tensor:
        vision, count = self.net.vision_model, video.shape[2]
        last, tokens = vision.encoder.layers[-1], self._tokens(video)[:, 1:]
        alone = last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(tokens)))
        tokens = tokens + alone
        tokens = self._project(tokens + last.mlp(last.layer_norm2(tokens)))  # (B t', patches, S)
        side = self.size // self.net.config.vision_config.patch_size
        patches = tokens.reshape(len(video), count, side, side, -1).movedim(-1, 1)
        return _unit(ops.level_resample(patches.contiguous(), tuple(grid)).movedim(1, -1))

    def _tokens(self, video: Tensor) -> Tensor:
        """Frames (B, 3, T, H, W) in [-1, 1] -> what the image tower's last block is given, (B T, 1 + patches, D). The
        whole frame is stretched to the tower's square, so that a region keeps its place."""
        vision = self.net.vision_model
        pixels = (video.float().movedim(2, 1).flatten(0, 1) + 1) / 2
        size = (self.size, self.size)
        if tuple(pixels.shape[2:]) != size:
            pixels = torch.nn.functional.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
        hidden = vision.pre_layrnorm(vision.embeddings((pixels - self.mean) / self.std))
        for layer in vision.encoder.layers[:-1]:
            hidden = layer(hidden, None)
        return hidden

    def _project(self, tokens: Tensor) -> Tensor:
        return _unit(self.net.visual_projection(self.net.vision_model.post_layernorm(tokens)))


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x.float(), dim=-1)


def _normalization(model: str | Path) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of the pixels that a model was trained with."""
    from transformers.utils import cached_file

    path = cached_file(model, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    if path is None:
        return _MEAN, _STD
    values = json.loads(Path(path).read_text(encoding="utf8"))
    return values.get("image_mean", _MEAN), values.get("image_std", _STD)
