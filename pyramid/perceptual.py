"""Perceptual loss: distance of two videos in the features of a vision model that the user names.

Any transformers vision model that gives hidden states (ViT, DINO, ConvNeXt, ResNet, the image tower of CLIP), by local
folder or hub id. Frames are prepared as the model's own processor says, but differentiably and without torchvision. As
in LPIPS (1801.03924), features are scaled to unit length along their channels before they are compared; the weights
that LPIPS learned from people's judgements are not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Shapes: B batch, T frames, H W pixels; N frames of all clips.


@dataclass(frozen=True)
class PerceptualConfig:
    """`model`: local folder or hub id; `layers`: which hidden states, counted as the model counts them, negative from
    the last, all if empty; `frames`: how many frames of each clip are compared, drawn at random; 0 for all."""

    model: str | None = None
    layers: tuple[int, ...] = ()
    frames: int = 4

    def __post_init__(self) -> None:
        if self.frames < 0:
            raise ValueError(f"frames: expected 0 or more, got {self.frames}")


class PerceptualLoss:
    """Not an nn.Module: the frozen model is no part of what is trained, averaged or saved; copies share it."""

    def __init__(self, config: PerceptualConfig) -> None:
        """Raises ValueError for a model that cannot be loaded, is no vision model, or lacks a layer that is asked
        for."""
        if not config.model:
            raise ValueError(
                "PerceptualLoss: perceptual.model: expected a folder or hub id of a vision model, got none"
            )
        self.config = config
        self.model, self.preparation = _load(config.model)
        states = len(self._hidden(torch.zeros(1, 3, 32, 32)))
        for layer in config.layers:
            if not -states <= layer < states:
                raise ValueError(
                    f"PerceptualLoss: {config.model}: perceptual.layers: expected numbers from {-states} to "
                    f"{states - 1}, got {layer}"
                )

    def __deepcopy__(self, memo: dict) -> PerceptualLoss:
        return self

    def __call__(self, prediction: Tensor, target: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Two videos (B, 3, T, H, W) in [-1, 1] -> scalar, with gradient to `prediction`; `generator` (CPU) draws the
        frames."""
        self.model.to(prediction.device)
        num_frames = target.shape[2]
        if 0 < self.config.frames < num_frames:
            chosen = torch.randperm(num_frames, generator=generator)[: self.config.frames].to(target.device)
            prediction, target = prediction.index_select(2, chosen), target.index_select(2, chosen)
        with torch.no_grad():
            wanted = self._features(target)
        return torch.stack([_distance(a, b) for a, b in zip(self._features(prediction), wanted, strict=True)]).mean()

    def _features(self, video: Tensor) -> list[Tensor]:
        states = self._hidden(video.float().movedim(2, 1).flatten(0, 1))
        return [states[layer] for layer in self.config.layers] if self.config.layers else list(states)

    def _hidden(self, frames: Tensor) -> Sequence[Tensor]:
        """Frames (N, 3, H, W) in [-1, 1] -> hidden states."""
        with torch.autocast(frames.device.type, enabled=False):
            out = self.model(pixel_values=self.preparation(frames), output_hidden_states=True)
        return out.hidden_states


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Feature maps (N, C, h, w) or token features (N, P, C): mean over places of the squared distance of unit
    vectors."""
    channels = 1 if a.ndim == 4 else -1
    a, b = (nn.functional.normalize(x, dim=channels, eps=1e-6) for x in (a, b))
    return (a - b).square().sum(dim=channels).mean()


@dataclass(frozen=True)
class Preparation:
    """What a processor's config says: the size to scale frames to, or the length of their shorter side; the middle that
    is cut out; mean and deviation of each channel of pixels in [0, 1]."""

    size: tuple[int, int] | int | None
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def of(values: dict[str, Any]) -> Preparation:
        size: Any = values.get("size") if values.get("do_resize", True) else None
        if isinstance(size, dict):
            size = size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
        elif isinstance(size, int) and not values.get("do_center_crop"):
            size = (size, size)
        crop: Any = values.get("crop_size") if values.get("do_center_crop") else None
        if crop is not None:
            crop = (crop["height"], crop["width"]) if isinstance(crop, dict) else (crop, crop)
        normalizes = values.get("do_normalize", True) and "image_mean" in values
        mean, std = (tuple(values[name]) if normalizes else fill for name, fill in _PLAIN.items())
        return Preparation(tuple(size) if isinstance(size, list) else size, crop, mean, std)

    def __call__(self, frames: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, 3, h, w), normalized."""
        x = (frames + 1) / 2
        height, width = x.shape[-2:]
        size = self.size
        if isinstance(size, int):
            scale = size / min(height, width)
            size = (max(size, round(height * scale)), max(size, round(width * scale)))
        if size is not None and size != (height, width):
            x = nn.functional.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True)
        if self.crop is not None:
            top, left = ((x.shape[axis] - cut) // 2 for axis, cut in zip((-2, -1), self.crop, strict=True))
            x = x[..., max(0, top) : max(0, top) + self.crop[0], max(0, left) : max(0, left) + self.crop[1]]
        mean, std = (x.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (x - mean) / std


_PLAIN = {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}


def _load(name: str) -> tuple[nn.Module, Preparation]:
    from transformers import AutoModel
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        model = AutoModel.from_pretrained(name)
        values, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"PerceptualLoss: {name}: expected a vision model with its processor's config, got: {reason}"
        ) from None
    model = getattr(model, "vision_model", model)  # CLIP and its kin have a text tower too
    if getattr(model, "main_input_name", None) != "pixel_values":
        found = f"{type(model).__name__}, which takes {model.main_input_name}"
        raise ValueError(f"PerceptualLoss: {name}: expected a model that takes pixel_values, got {found}")
    return model.eval().requires_grad_(False), Preparation.of(values)
