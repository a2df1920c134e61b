"""`pyramid quickstart`: the whole path in one command, and a report to look at. Needs the shipped model and no network.

Trains a small tokenizer for about two minutes, then uses the shipped model: reconstructs, captions and generates
held-out clips at every detail. Writes `report.html`, `summary.json`, and the clips it captioned.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.console import DONE, Console, to_json
from tasks.files import claim_folder
from tasks.options import Json, Model, Out, Overwrite, Seed

if TYPE_CHECKING:
    from lm.model import PyramidLM
    from tasks.judge import Judge


def quickstart(
    out: Out = Path("runs/quickstart"),
    minutes: Annotated[float, typer.Option(min=0.05, help="To train the small tokenizer.")] = 2.0,
    model: Model = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> int:
    """Train a little, caption, generate at every detail, and write a report."""
    with Console("quickstart", as_json, writes=True) as console:
        from tasks.models import load_judge, load_lm, part_of

        claim_folder(out, overwrite, inputs=[part_of(model, "lm")])
        lm = load_lm(model)
        judge = load_judge(model, lm.tokenizer.config)
        summary = _run(console, lm, judge, out, minutes, seed)
        console.emit(summary, _closing(summary, out))
    return DONE


def _run(console: Console, lm: PyramidLM, judge: Judge, out: Path, minutes: float, seed: int) -> dict[str, Any]:
    import torch

    from pyramid import ops
    from pyramid.files import replacing
    from tasks import showcase
    from tasks.report import write_report

    clock = _Clock(console)
    with clock("train"):
        trained, small = showcase.train_small(out / "tokenizer", minutes, seed, console)
        shown = showcase.show_reconstruction(small, "What it makes of held-out clips", shown=1)
    with clock("reconstruct"):
        rebuilt = showcase.show_reconstruction(lm.tokenizer, "The shipped tokenizer, at every detail")
    with clock("caption"):
        captions = showcase.show_captions(lm, out / "clips")
    with clock("generate"):
        generated = showcase.show_generation(lm, judge, seed)
    summary = {
        "seconds": clock.seconds,
        "tokenizer": rebuilt.figures,
        "trained": {**trained.figures, **shown.figures},
        "caption": captions.figures,
        "generate": generated.figures,
        "torch": torch.__version__,
        "extension": ops.build_info(),
        "threads": torch.get_num_threads(),
        "seed": seed,
    }
    sections = [
        _overview(summary),
        captions.section,
        generated.section,
        rebuilt.section,
        trained.section,
        shown.section,
    ]
    write_report(out / "report.html", "Pyramid: quickstart", sections, "Video as a semantic pyramid of tokens")
    with replacing(out / "summary.json") as part:
        part.write_text(to_json(summary, indent=2) + "\n", encoding="utf8")
    return summary


class _Clock:
    """Seconds of each step and in total; says which step begins."""

    def __init__(self, console: Console) -> None:
        self.console, self.seconds = console, {"total": 0.0}
        self._name, self._begin = "", 0.0

    def __call__(self, name: str) -> _Clock:
        self._name = name
        return self

    def __enter__(self) -> None:
        self.console.note(f"quickstart: {self._name}")
        self._begin = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds[self._name] = round(time.perf_counter() - self._begin, 1)
        self.seconds["total"] = round(self.seconds["total"] + self.seconds[self._name], 1)


def _overview(summary: dict[str, Any]) -> Any:
    from tasks.report import Figures, Section

    caption, generate = summary["caption"], summary["generate"]
    figures = {
        "of captions right in all four attributes": f"{caption['exact_match']:.1%}",
        "of a clip's tokens read for it": f"{caption['tokens_read'] / caption['tokens_total']:.1%}",
        "of generated clips as asked, full detail": f"{generate['attribute_accuracy_by_detail'][-1]:.1%}",
        "PSNR at full detail": f"{summary['tokenizer']['psnr_by_detail'][-1]:.1f} dB",
        "for a generated clip": f"{generate['seconds_per_clip']:.2f} s",
        "for all of this": f"{summary['seconds']['total']:.0f} s",
    }
    text = (
        "Every clip is a pyramid of tokens. The few of the coarse levels are words and are read to caption it; the "
        "many of the fine levels are bits and carry the detail. Any prefix of the levels decodes to a clip."
    )
    return Section("In short", text, [Figures(figures)])


def _closing(summary: dict[str, Any], out: Path) -> str:
    caption, generate = summary["caption"], summary["generate"]
    numbers = "  ".join(f"{value:.2f}" for value in summary["tokenizer"]["psnr_by_detail"])
    accuracy = "  ".join(f"{value:.0%}" for value in generate["attribute_accuracy_by_detail"])
    return "\n".join(
        [
            f"captions: {caption['exact_match']:.1%} of {caption['n']} held-out clips right in shape, colour, size and "
            f"motion, reading {caption['tokens_read']} of {caption['tokens_total']} tokens",
            f"generated clips right by detail: {accuracy}",
            f"PSNR by detail, dB: {numbers}",
            f"{summary['seconds']['total']:.0f} s; look at {out / 'report.html'}",
        ]
    )
