"""Draws what `pyramid bench ops --out` wrote: how many times as fast as the best rival each case is.

python benchmarks/plot_ops.py benchmarks/results/ops_cpu.json docs/ops.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

from pyramid.ops.bench.report import best_rivals

FASTER, SLOWER = "#2b6cb0", "#c05621"


def main(source: str, target: str) -> None:
    rows = best_rivals(json.loads(Path(source).read_text(encoding="utf8")))
    if not rows:
        sys.exit(f"plot_ops: {source}: expected rows of pyramid bench ops, got none")
    # One bar a case, the ops apart, from the top.
    ops = list(dict.fromkeys(row["op"] for row in rows))
    places, top, heads = [], 0.0, {}
    for row in rows:
        if row["op"] not in heads:
            top += 0.5 if heads else 0.0
            heads[row["op"]] = top
            top += 1.0
        places.append(top)
        top += 1.0
    figure, axis = plt.subplots(figsize=(10.5, 0.235 * top + 1.1))
    ratios = [row["ratio"] for row in rows]
    left, right = min(0.5, *ratios) * 0.8, max(2.0, *ratios) * 2
    axis.barh(
        places,
        [ratio - 1 for ratio in ratios],
        left=1,
        height=0.72,
        color=[FASTER if ratio >= 1 else SLOWER for ratio in ratios],
    )
    beside = axis.get_yaxis_transform()  # x in widths of the plot, y in its units
    for place, row in zip(places, rows, strict=True):
        axis.text(max(row["ratio"], 1) * 1.05, place, f"{row['ratio']:.3g}x", va="center", fontsize=8)
        times = f"{_milliseconds(row['rival_ms'])}, ours {_milliseconds(row['ours_ms'])}"
        axis.text(1.02, place, f"{row['rival']}: {times}", transform=beside, va="center", fontsize=8)
    axis.axvline(1, color="black", linewidth=1)
    axis.set_xscale("log")
    axis.set_xlim(left, right)
    axis.set_ylim(top - 0.3, -0.9)
    names = sorted([(place, row["case"]) for place, row in zip(places, rows, strict=True)])
    axis.set_yticks([place for place, _ in names], [name for _, name in names], fontsize=8)
    for op in ops:
        axis.text(-0.01, heads[op], op, transform=beside, ha="right", va="center", weight="bold")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.set_title(f"Times as fast as the best rival, log scale ({rows[0]['device']})", fontsize=10, loc="left")
    figure.tight_layout()
    figure.savefig(target, dpi=120)


def _milliseconds(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
