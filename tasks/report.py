"""An HTML report in one file: figures, tables, curves, contact sheets, animated clips, the words of a pyramid.

Nothing is fetched: styles, drawings and clips are inside the file. It follows the reader's light or dark setting.
Clips are animated PNG: lossless, so that what is looked at is what the decoder gave.

    write_report(path, "Title", [Section("Curve", blocks=[Curves({"loss": (steps, losses)}, "step", "loss")])])
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pyramid.files import replacing


class Block(Protocol):
    """A part of a section that knows its own HTML."""

    def html(self) -> str: ...


@dataclass(frozen=True)
class Section:
    title: str
    text: str = ""
    blocks: Sequence[Block] = ()


@dataclass(frozen=True)
class Figures:
    """A few numbers to see at once, each with its name."""

    values: Mapping[str, str]

    def html(self) -> str:
        tiles = "".join(
            f"<div class=tile><b>{escape(value)}</b><span>{escape(name)}</span></div>"
            for name, value in self.values.items()
        )
        return f"<div class=tiles>{tiles}</div>"


@dataclass(frozen=True)
class Table:
    """Rows of text or numbers; numbers stand to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def html(self) -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in self.header)
        body = "".join(f"<tr>{''.join(map(self._cell, row))}</tr>" for row in self.rows)
        return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"

    @staticmethod
    def _cell(value: Any) -> str:
        if isinstance(value, bool):
            return f"<td class={'yes' if value else 'no'}>{'yes' if value else 'no'}</td>"
        if isinstance(value, (int, float)):
            return (
                f"<td class=number>{value:,}</td>" if isinstance(value, int) else f"<td class=number>{value:.4g}</td>"
            )
        return f"<td>{escape(str(value))}</td>"


@dataclass(frozen=True)
class Curves:
    """Lines (xs, ys) by name on one pair of axes, drawn as SVG in the colours of the page."""

    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    x: str = "step"
    y: str = ""
    log_y: bool = False
    markers: bool = False

    def html(self) -> str:
        import matplotlib

        matplotlib.use("Agg", force=False)
        from matplotlib.figure import Figure

        ink = "#010203"  # replaced by the page's own colour below
        with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "pyramid"}):
            figure = Figure(figsize=(7.2, 2.8), layout="constrained")
            axes = figure.add_subplot()
            for colour, (name, (xs, ys)) in zip(_COLOURS * len(self.lines), self.lines.items(), strict=False):
                axes.plot(xs, ys, label=name, color=colour, linewidth=1.8, marker="o" if self.markers else None)
            axes.set_xlabel(self.x, color=ink)
            axes.set_ylabel(self.y, color=ink)
            if self.log_y:
                axes.set_yscale("log")
            axes.tick_params(which="both", colors=ink, labelcolor=ink)
            axes.grid(color=ink, alpha=0.15, linewidth=0.6)
            for side, spine in axes.spines.items():
                spine.set(visible=side in ("left", "bottom"), color=ink)
            if len(self.lines) > 1:
                axes.legend(frameon=False, labelcolor=ink)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        svg = buffer.getvalue()
        return f"<figure class=curve>{svg[svg.index('<svg') :].replace(ink, 'currentColor')}</figure>"


@dataclass(frozen=True)
class Picture:
    """A still picture, uint8 (H, W, 3), such as a contact sheet."""

    pixels: np.ndarray
    caption: str = ""

    def html(self) -> str:
        note = f"<figcaption>{escape(self.caption)}</figcaption>" if self.caption else ""
        return f"<figure><img alt='{escape(self.caption, quote=True)}' src='{_png(self.pixels[None])}'>{note}</figure>"


@dataclass(frozen=True)
class Clip:
    """Frames uint8 (T, H, W, 3), shown as a loop. `good` colours the edge: True, False, or None for neither."""

    frames: np.ndarray
    caption: str = ""
    fps: float = 8.0
    good: bool | None = None

    def html(self, width: int) -> str:
        mark = {None: "", True: " class=good", False: " class=bad"}[self.good]
        source = _png(self.frames, self.fps)
        return (
            f"<figure{mark}><img width={width} alt='{escape(self.caption, quote=True)}' src='{source}'>"
            f"<figcaption style='max-width:{width}px'>{escape(self.caption)}</figcaption></figure>"
        )


@dataclass(frozen=True)
class Clips:
    """Clips in rows; a row may have a title. Small ones are enlarged without smoothing."""

    rows: Sequence[tuple[str, Sequence[Clip]]]
    width: int = 128

    def html(self) -> str:
        parts = []
        for title, clips in self.rows:
            heading = f"<h3>{escape(title)}</h3>" if title else ""
            parts.append(f"{heading}<div class=clips>{''.join(clip.html(self.width) for clip in clips)}</div>")
        return "".join(parts)


@dataclass(frozen=True)
class Words:
    """A clip beside the words at the top of its pyramid, a row a level, coarse first: (clip, caption, levels)."""

    entries: Sequence[tuple[Clip, str, Sequence[Sequence[str]]]]
    width: int = 96
    note: str = field(default="")

    def html(self) -> str:
        cards = []
        for clip, caption, levels in self.entries:
            rows = "".join(
                f"<div class=level>{''.join(f'<span>{escape(word)}</span>' for word in words)}</div>"
                for words in levels
            )
            cards.append(f"<div class=card>{clip.html(self.width)}<div><p>{escape(caption)}</p>{rows}</div></div>")
        note = f"<p class=quiet>{escape(self.note)}</p>" if self.note else ""
        return f"{note}<div class=cards>{''.join(cards)}</div>"


def write_report(path: str | Path, title: str, sections: Sequence[Section], subtitle: str = "") -> None:
    """Write the sections as one HTML file, at once or not at all; replaces the file if it is there."""
    path = Path(path)
    body = "".join(
        f"<section><h2>{escape(section.title)}</h2>"
        f"{f'<p>{escape(section.text)}</p>' if section.text else ''}"
        f"{''.join(block.html() for block in section.blocks)}</section>"
        for section in sections
    )
    page = (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>{escape(title)}</h1><p class=quiet>{escape(subtitle)}</p>{body}</main></body></html>\n"
    )
    with replacing(path) as part:
        part.write_text(page, encoding="utf8")


def _png(frames_THWC: np.ndarray, fps: float = 8.0) -> str:
    """A data URL of one picture, or of a looping animation."""
    from PIL import Image

    frames = np.asarray(frames_THWC)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise ValueError(f"report: expected uint8 frames (T, H, W, 3), got {frames.dtype} {frames.shape}")
    first, *rest = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    options: dict[str, Any] = (
        {"save_all": True, "append_images": rest, "duration": 1000 / fps, "loop": 0} if rest else {}
    )
    first.save(buffer, format="PNG", optimize=not rest, **options)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


_COLOURS = ("#4c78d8", "#e0803a", "#3a9d6e", "#c2508f", "#8a6fd1", "#b39b2c")
_STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf8;--ink:#1d1f24;--quiet:#6a6e78;--line:#dedbd4;--card:#fff;--accent:#4c78d8;
--yes:#2c8a5c;--no:#c2413b}
@media(prefers-color-scheme:dark){:root{--paper:#15171b;--ink:#e8e6e1;--quiet:#979ca8;--line:#2f333b;--card:#1d2026;
--yes:#57c08d;--no:#ee7c74}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main{max-width:1060px;margin:0 auto;padding:48px 24px 96px}
h1{font-size:34px;line-height:1.15;margin:0 0 4px;letter-spacing:-.02em}
h2{font-size:22px;margin:56px 0 8px;padding-top:20px;border-top:1px solid var(--line)}
h3{font-size:15px;margin:22px 0 6px;font-weight:600}
p{margin:8px 0 14px;max-width:74ch}
.quiet{color:var(--quiet)}
figure{margin:0}
figcaption{font-size:12.5px;line-height:1.35;color:var(--quiet);margin-top:4px;overflow-wrap:anywhere}
img{display:block;max-width:100%;height:auto;border-radius:6px;image-rendering:pixelated}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:12px;margin:16px 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.tile b{display:block;font-size:24px;font-weight:600;font-variant-numeric:tabular-nums}
.tile span{font-size:13px;color:var(--quiet)}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:14px;margin:12px 0;min-width:50%}
th,td{text-align:left;padding:6px 14px 6px 0;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--quiet)}
.number{text-align:right;font-variant-numeric:tabular-nums}
.yes{color:var(--yes)}.no{color:var(--no)}
.curve svg{width:100%;height:auto;max-width:820px;font-family:inherit}
.clips{display:flex;flex-wrap:wrap;gap:14px}
.good img{outline:2px solid var(--yes)}.bad img{outline:2px solid var(--no)}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:14px}
.card{display:flex;gap:14px;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px}
.card p{margin:0 0 8px;font-size:14px}
.level{display:flex;flex-wrap:wrap;justify-content:center;gap:4px;margin-bottom:4px}
.level span{font-size:12.5px;background:color-mix(in srgb,var(--accent) 16%,transparent);border-radius:4px;
padding:1px 6px}
"""
