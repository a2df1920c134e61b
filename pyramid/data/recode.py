"""Clips as a codec leaves them: what a rendered clip looks like once it has been a file.

Video files keep colour at half resolution and drop fine detail. A tokenizer that saw rendered clips only takes these
traces for content; `RecodedClips` shows it both kinds. The codec is the real one (H.264 by FFmpeg), in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter
from torch import Tensor
from torch.utils.data import Dataset

from pyramid.data.transforms import from_uint8, to_uint8

_PRESETS = ("ultrafast", "veryfast", "medium")
_KERNELS = (Interpolation.AREA, Interpolation.BILINEAR, Interpolation.BICUBIC)


def recode(
    video: Tensor, crf: int = 23, preset: str = "medium", kernel: Interpolation = Interpolation.BICUBIC, fps: int = 8
) -> Tensor:
    """One clip through H.264 in 4:2:0 and back.

    Args:
        video: float (3, T, H, W) in [-1, 1]; H and W even.
        crf: constant rate factor of libx264, 0 (best) to 51.
        preset: of libx264: how hard it looks for what can be left out.
        kernel: how chroma is resampled, both ways.
        fps: frames a second; the encoder plans by it.

    Returns:
        float32 (3, T, H, W) in [-1, 1].

    Raises:
        ValueError: an odd side, which 4:2:0 has not; what `to_uint8` raises.
    """
    frames = to_uint8(video).numpy()
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"recode: expected even sides, got {height}x{width}")
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.framerate, encoder.thread_count = fps, 1
    encoder.options = {"crf": str(crf), "preset": preset}
    decoder: Any = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    scale = VideoReformatter()
    packets = []
    for index, frame in enumerate(frames):
        picture = scale.reformat(
            av.VideoFrame.from_ndarray(frame, format="rgb24"),
            format="yuv420p",
            interpolation=kernel,
            dst_colorspace="ITU709",
            dst_color_range="MPEG",
        )
        picture.pts = index
        packets += encoder.encode(picture)
    packets += encoder.encode(None)
    decoded = [picture for packet in (*packets, None) for picture in decoder.decode(packet)]
    rgb = [
        scale.reformat(
            picture, format="rgb24", interpolation=kernel, src_colorspace="ITU709", src_color_range="MPEG"
        ).to_ndarray()
        for picture in decoded
    ]
    return from_uint8(np.stack(rgb))


class RecodedClips(Dataset):
    """The clips of `dataset`, each with a field `seen` beside its `video`: the clip itself or, for a share of them,
    the clip after H.264 of random quality. Which clips, and how hard, is a function of (seed, epoch, index); libx264
    itself gives now and then other bits for the same frames.

    Raises:
        ValueError: a share outside [0, 1], an empty range of `crf`, or clips of an odd height or width.
    """

    def __init__(self, dataset: Dataset, share: float = 0.5, crf: tuple[int, int] = (10, 32), seed: int = 0) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"RecodedClips: share must be in [0, 1], got {share}")
        if not 0 <= crf[0] <= crf[1] <= 51:
            raise ValueError(f"RecodedClips: crf must be a range within 0 .. 51, got {crf}")
        self.dataset, self.share, self.crf, self.seed = dataset, share, crf, seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that run already see it change

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # map-style sets have a length

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __getitem__(self, index: int) -> dict:
        return self._with_seen(self.dataset[index], index)

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        if hasattr(self.dataset, "__getitems__"):
            items = self.dataset.__getitems__(indices)
        else:
            items = [self.dataset[index] for index in indices]
        return [self._with_seen(item, index) for item, index in zip(items, indices, strict=True)]

    def _with_seen(self, item: dict, index: int) -> dict:
        draw = np.random.default_rng((self.seed, int(self._epoch), index))
        if draw.random() >= self.share:
            return {**item, "seen": item["video"]}
        crf = int(draw.integers(self.crf[0], self.crf[1] + 1))
        preset, kernel = _PRESETS[draw.integers(len(_PRESETS))], _KERNELS[draw.integers(len(_KERNELS))]
        return {**item, "seen": recode(item["video"], crf, preset, kernel)}
