"""The words of a pyramid on the frames that they stand for: a row a level, a column a chunk (and a time in it)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pyramid.data.transforms import to_uint8
from pyramid.levels import chunk_lengths

if TYPE_CHECKING:
    from pyramid.spelling import SpeltLevel, SpeltWord

_Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

_PAPER, _INK, _LINE, _BACK = (255, 255, 255), (20, 20, 20), (255, 255, 255, 150), (0, 0, 0, 190)
_GAP, _TITLE, _LARGEST, _SMALLEST = 6, 20, 18, 7


def word_sheet(
    video: Tensor, chunks: Sequence[Sequence[SpeltLevel]], chunk_frames: int, panel: int = 288
) -> Image.Image:
    """Draws each level's words, with their probabilities, in the cells of its grid.

    Args:
        video: (3, T, H, W) in [-1, 1], the clip that was spelt. chunks: what `spell` gave for it.
        panel: the least pixels of a panel's longer side; frames are enlarged by a whole factor, without smoothing.

    Returns:
        An RGB picture. Under a word stands the frame in the middle of the time that its cell covers.
    """
    frames = to_uint8(video).numpy(force=True)
    factor = max(1, -(-panel // max(frames.shape[1:3])))
    height, width = frames.shape[1] * factor, frames.shape[2] * factor
    columns = [max(level.grid.t for level in levels) for levels in chunks]
    num_rows = len(chunks[0])
    size = (_GAP + sum(columns) * (width + _GAP), _GAP + num_rows * (_TITLE + height + _GAP))
    sheet = Image.new("RGB", size, _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    lengths = chunk_lengths(len(frames), chunk_frames)
    for row in range(num_rows):
        top = _GAP + row * (_TITLE + height + _GAP)
        for number, levels in enumerate(chunks):
            level, first = levels[row], sum(lengths[:number])
            for t in range(level.grid.t):
                left = _GAP + (sum(columns[:number]) + t) * (width + _GAP)
                moment = first + int((t + 0.5) * lengths[number] / level.grid.t)
                title = (
                    f"level {level.number}, {'first frame' if number == 0 else f'chunk {number}'}, frame {moment + 1}"
                )
                draw.text((left, top), title, fill=_INK, font=font)
                picture = Image.fromarray(frames[moment]).resize((width, height), Image.Resampling.NEAREST)
                count = level.grid.h * level.grid.w
                cells = level.words[t * count : (t + 1) * count]
                sheet.paste(_written(picture, cells, level.grid.h, level.grid.w), (left, top + _TITLE))
    return sheet


def _written(picture: Image.Image, words: Sequence[SpeltWord], rows: int, columns: int) -> Image.Image:
    """The picture with a grid of words over it."""
    over = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(over)
    width, height = picture.width / columns, picture.height / rows
    for index, word in enumerate(words):
        left, top = index % columns * width, index // columns * height
        draw.rectangle((left, top, left + width - 1, top + height - 1), outline=_LINE)
        text = f"{word.word}\n{word.probability:.2f}"
        font = _fitting(draw, text, width - 4, height - 2)
        middle = (left + width / 2, top + height / 2)
        box = draw.multiline_textbbox(middle, text, font=font, anchor="mm", align="center")
        draw.rectangle((box[0] - 3, box[1] - 2, box[2] + 3, box[3] + 2), fill=_BACK)
        draw.multiline_text(middle, text, font=font, anchor="mm", align="center", fill=(255, 255, 255, 255))
    return Image.alpha_composite(picture.convert("RGBA"), over).convert("RGB")


def _fitting(draw: ImageDraw.ImageDraw, text: str, width: float, height: float) -> _Font:
    """The largest font in which the text fits its cell, or the smallest there is."""
    for size in range(_LARGEST, _SMALLEST, -1):
        font = ImageFont.load_default(size=size)
        left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font=font)
        if right - left <= width and bottom - top <= height:
            return font
    return ImageFont.load_default(size=_SMALLEST)
