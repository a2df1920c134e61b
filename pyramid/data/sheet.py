"""Contact sheets: many clips on one picture, a clip a row and time from left to right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pyramid.data.transforms import to_uint8

_PAPER, _INK = (255, 255, 255), (20, 20, 20)


def contact_sheet(
    rows: Sequence[Tensor],
    labels: Sequence[str] | None = None,
    *,
    max_frames: int = 8,
    gap: int = 4,
    font_size: int = 14,
    min_cell: int = 64,
) -> np.ndarray:
    """Puts clips on one picture.

    Args:
        rows: float videos (3, T, H, W) in [-1, 1]; sizes and lengths may differ.
        labels: a line of text above each row, cut to the width of the sheet; None for none.
        max_frames: frames a row; a longer clip shows this many, evenly spaced, first and last included.
        gap: pixels between frames.
        font_size: height of the text in pixels.
        min_cell: a frame whose longer side is smaller is enlarged by a whole factor, without smoothing.

    Returns:
        uint8 (height, width, 3).

    Raises:
        ValueError: no rows, an empty clip, or labels that don't match the rows.
    """
    if len(rows) == 0:
        raise ValueError("contact_sheet: expected at least one clip, got none")
    if labels is not None and len(labels) != len(rows):
        raise ValueError(f"contact_sheet: expected a label a row ({len(rows)}), got {len(labels)}")
    if max_frames < 1:
        raise ValueError(f"contact_sheet: max_frames must be at least 1, got {max_frames}")
    strips = [_strip(to_uint8(row).numpy(force=True), max_frames, gap, min_cell) for row in rows]
    line = round(1.5 * font_size) if labels is not None else 0
    width = 2 * gap + max(strip.shape[1] for strip in strips)
    height = gap + sum(strip.shape[0] + line + gap for strip in strips)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=font_size)
    top = gap
    for index, strip in enumerate(strips):
        if labels is not None:
            draw.text((gap, top), _cut(labels[index], width - 2 * gap, font), fill=_INK, font=font)
            top += line
        sheet.paste(Image.fromarray(strip), (gap, top))
        top += strip.shape[0] + gap
    return np.asarray(sheet).copy()


def _strip(frames_THWC: np.ndarray, max_frames: int, gap: int, min_cell: int) -> np.ndarray:
    num_frames, height, width = frames_THWC.shape[:3]
    if 0 in (num_frames, height, width):
        raise ValueError(f"contact_sheet: expected at least one frame and pixel, got {frames_THWC.shape}")
    picked = np.linspace(0, num_frames - 1, min(num_frames, max_frames)).round().astype(int)
    factor = max(1, min_cell // max(height, width))
    frames = frames_THWC[picked].repeat(factor, axis=1).repeat(factor, axis=2)
    strip = np.full((height * factor, len(picked) * (width * factor + gap) - gap, 3), 255, np.uint8)
    for index, frame in enumerate(frames):
        left = index * (width * factor + gap)
        strip[:, left : left + width * factor] = frame
    return strip


def _cut(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """One line that fits in `width` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
