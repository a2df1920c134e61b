"""The figures of an evaluation as curves over the detail: one picture, four panels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.evaluation import Evaluation

# Told apart by people who see fewer colours too (Okabe and Ito's palette).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def draw_curves(result: Evaluation, path: Path) -> None:
    """Write a PNG: PSNR; SSIM and MS-SSIM; understanding with chance, dashed; usage and perplexity of the levels. A
    band is the range over the seeds."""
    from matplotlib.figure import Figure

    rows, protocol = result.rows, result.protocol
    details = [row["detail"] for row in rows]
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    (left, middle), (below, right) = figure.subplots(2, 2)
    left.set_title("Reconstruction: PSNR, dB", loc="left")
    _curve(left, rows, "psnr", _COLOURS[0])
    scales = protocol["ms_ssim_scales"]
    middle.set_title("Reconstruction: structural similarity", loc="left")
    _curve(middle, rows, "ssim", _COLOURS[0], "SSIM")
    _curve(middle, rows, "ms_ssim", _COLOURS[1], f"MS-SSIM, {scales} scales")
    if middle.lines:
        middle.set_ylim(top=1.0)
        middle.legend(frameon=False)
    else:
        _say(middle, "frames too small")
    below.set_title("Understanding: % right, linear probes on the codes", loc="left")
    if rows[0]["understanding"]:
        for name, colour in zip(rows[0]["understanding"], _COLOURS * 9, strict=False):
            _curve(below, rows, "understanding", colour, name, name)
            below.axhline(100 * rows[0]["chance"][name], color=colour, linestyle=":", linewidth=1)
        below.set_ylim(0, 103)
        below.legend(frameon=False, title="dotted: chance", title_fontsize="small")
    else:
        _say(below, str(protocol["understanding"]))
    right.set_title("Codes of the level that each detail adds", loc="left")
    right.bar(details, [100 * row["usage"] for row in rows], color=_COLOURS[5], width=0.6)
    right.set_ylabel("% of the codebook used (bars)")
    right.set_ylim(0, 103)
    other = right.twinx()
    other.plot(details, [row["perplexity"] for row in rows], "o", color=_COLOURS[1])
    other.plot(details, [row["codebook_size"] for row in rows], "_", color="black", markersize=18)
    other.set_yscale("log")
    other.set_ylim(1, 2 * max(row["codebook_size"] for row in rows))
    other.set_ylabel("perplexity (dots), codebook size (dashes)")
    for axis in (left, middle, below, right):
        names = [f"{row['detail']}: {row['codebook']}\n{row['tokens']} tokens\n{row['bpp']:.2g}" for row in rows]
        names[-1] += " b/px"
        axis.set_xticks(details, names, fontsize=8)
        axis.set_xlim(details[0] - 0.5, details[-1] + 0.5)
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top"]].set_visible(False)
    height, width = protocol["size"]
    figure.suptitle(
        f"{protocol.get('model', 'tokenizer')} ({protocol.get('model_hash', '')}) on {protocol['data']}, "
        f"{protocol['clips']} clips of {protocol['frames']} frames of {height}x{width}",
        fontsize=11,
    )
    figure.savefig(path, dpi=110)


def _curve(axis: Any, rows: list[dict], name: str, colour: str, label: str | None = None, part: str = "") -> None:
    """One figure over the details, with its range over the seeds; nothing where it is None."""
    if any(row[name] is None for row in rows):
        return
    each = [[seed[name][part] if part else seed[name] for seed in row["seeds"]] for row in rows]
    factor = 100 if part else 1
    details = [row["detail"] for row in rows]
    means = [factor * (row[name][part] if part else row[name]) for row in rows]
    axis.plot(details, means, "o-", color=colour, label=label, markersize=4)
    low, high = ([factor * pick(values) for values in each] for pick in (min, max))
    axis.fill_between(details, low, high, color=colour, alpha=0.25, linewidth=0)


def _say(axis: Any, text: str) -> None:
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", wrap=True)
