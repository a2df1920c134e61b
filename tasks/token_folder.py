"""`pyramid data tokens`: clips tokenized once, so that a language model trains from tokens."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.console import DONE, Console
from tasks.files import claim_folder
from tasks.options import Device, Json, Out, Overwrite, Seed, check_device

if TYPE_CHECKING:
    from pyramid.data.sources import DataConfig


def tokens(
    tokenizer: Annotated[
        str, typer.Argument(metavar="TOKENIZER", help="A shipped model, a folder or a hub id.", show_default=False)
    ],
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...", help="shapes, shapes:single, or folders of clips; taken in turns.", show_default=False
        ),
    ],
    out: Out = Path("runs/tokens"),
    clips: Annotated[
        int | None,
        typer.Option("--clips", min=1, help="To train on; 20000 of shapes, else all.", show_default=False),
    ] = None,
    val_clips: Annotated[int, typer.Option("--val-clips", min=1, help="To validate on.")] = 256,
    hints: Annotated[
        bool, typer.Option(help="With what interpolation, in- and outpainting, upscaling and restyling learn from.")
    ] = True,
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last shard in --out.")] = False,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> int:
    """Tokenize clips once, for `pyramid train lm tokens=OUT`.

    OUT/train and OUT/val hold shards of ids (safetensors), and what is said of each clip. Every clip is taken once
    before one is taken again; where more are asked for than there are, all are gone over again, at other places of the
    clips. A run that was stopped goes on with --resume.
    """
    with Console("data tokens", as_json, writes=True) as console:
        from lm.conditions import hinted
        from lm.token_cache import InTurns, write_tokens
        from pyramid.data.sources import make_datasets
        from tasks.models import load_tokenizer

        sources = [_source(name, seed) for name in data]
        if not resume:
            claim_folder(out, overwrite, inputs=[Path(source.path) for source in sources if source.path])
        model = load_tokenizer(tokenizer, check_device(device))
        for part in ("train", "val") if overwrite and not resume else ():
            shutil.rmtree(out / part, ignore_errors=True)
        c = model.config
        made = [make_datasets(source, c.num_frames, c.size, c.fps) for source in sources]
        sets: dict[str, tuple[Any, int]] = {}
        for place, part in enumerate(("train", "val")):
            parts = [pair[place] for pair in made]
            everything = sum(map(len, parts))  # type: ignore[arg-type]  # map-style sets have a length
            wanted = clips if part == "train" else min(val_clips, everything)
            if wanted is None:
                wanted = 20000 if any(source.source == "shapes" for source in sources) else everything
            sets[part] = (InTurns(parts), wanted)
        for part, (clips_of, count) in sets.items():
            begin = time.monotonic()

            def told(done: int, written: int, part: str = part, count: int = count, begin: float = begin) -> None:
                took = time.monotonic() - begin
                left = took / written * (count - done)
                console.note(f"{part}: {done} of {count} clips in {took:.0f} s, {left:.0f} s left")

            chosen = hinted() if hints else ()
            write_tokens(
                model,
                clips_of,
                out / part,
                count=count,
                seed=seed,
                hints=chosen,
                sources=[Path(name).name for name in data],
                progress=told,
            )
            record = {"out": str(out / part), "clips": count, "seconds": round(time.monotonic() - begin, 1)}
            console.emit(record, f"{out / part}: {count} clips")
    return DONE


def _source(name: str, seed: int) -> DataConfig:
    """`shapes`, `shapes:PRESET` or a folder. Raises FileNotFoundError for a folder that there is not."""
    from pyramid.data.sources import DataConfig

    kind, _, preset = name.partition(":")
    if kind == "shapes":
        return DataConfig(preset=preset or "full", seed=seed)
    if not Path(name).is_dir():
        raise FileNotFoundError(f"{name}: expected shapes, shapes:PRESET or a folder of clips, found no folder")
    return DataConfig(source="folder", path=name, seed=seed)
