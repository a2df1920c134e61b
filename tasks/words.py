"""`pyramid words`: the top of the pyramid as words, level by level, with scores; on the frames with `--out`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.console import Console
from tasks.files import find_clips, name_outputs
from tasks.options import Device, Inputs, Json, Model, Overwrite, check_device

if TYPE_CHECKING:
    from pyramid.spelling import SpeltLevel, SpeltWord


def words(
    inputs: Inputs,
    others: Annotated[
        int, typer.Option("--others", min=0, help="Show so many words that come next at each place too.")
    ] = 0,
    temperature: Annotated[
        float, typer.Option("--temperature", help="Of the probabilities; that of training tells what was learned.")
    ] = 0.1,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Draw the words on the frames: a .png, or a folder.", show_default=False),
    ] = None,
    overwrite: Overwrite = False,
    model: Model = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> int:
    """Print what the coarse levels of clips say: each word with its probability among all words of the table.

    A clip is cropped and resized to the model's size, and the frames read are spread over its whole length, as
    `caption` reads it. A level of several cells is printed row by row, `|` between cells.
    """
    with Console("words", as_json, writes=out is not None) as console:
        paths = find_clips(inputs)
        sheets = dict(zip(paths, name_outputs(paths, out, "png"), strict=True)) if out is not None else {}
        _claim(list(sheets.values()), overwrite)
        from pyramid.spelling import spell
        from tasks.clips import read_spread
        from tasks.models import load_tokenizer

        tokenizer = load_tokenizer(model, check_device(device))
        config = tokenizer.config

        def work(path: Path) -> None:
            video, source_frames = read_spread(path, config.num_frames, config.size)
            chunks = list(spell(tokenizer, video, temperature=temperature, num_others=others))
            record: dict[str, Any] = {"input": str(path), "frames": source_frames, "temperature": temperature}
            record["chunks"] = [[_record(level) for level in levels] for levels in chunks]
            if path in sheets:
                from pyramid.files import replacing
                from tasks.word_sheet import word_sheet

                sheets[path].parent.mkdir(parents=True, exist_ok=True)
                with replacing(sheets[path]) as part:
                    word_sheet(video[0], chunks, config.chunk_frames).save(part, format="png")
                record["out"] = str(sheets[path])
            console.emit(record, "\n".join([f"{path}:", *_lines(chunks)]))

        return console.each(paths, work)


def _claim(sheets: list[Path], overwrite: bool) -> None:
    """Whether these pictures may be written."""
    for path in sheets:
        if path.suffix.lower() != ".png":
            raise ValueError(f"--out {path}: expected a .png or a folder, got {path.suffix}")
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path}: exists already; give another --out, or --overwrite")


def _record(level: SpeltLevel) -> dict[str, Any]:
    return {
        "level": level.number,
        "grid": list(level.grid.grid),
        "words": [
            {
                "word": word.word,
                "probability": round(word.probability, 6),
                "distance": round(word.distance, 6),
                **({"others": [[name, round(share, 6)] for name, share in word.others]} if word.others else {}),
            }
            for word in level.words
        ],
    }


def _lines(chunks: list[list[SpeltLevel]]) -> list[str]:
    lines = []
    for number, levels in enumerate(chunks):
        for level in levels:
            name = "first frame" if number == 0 else f"chunk {number}"
            lines.append(f"  {name}, level {level.number}: {' | '.join(map(_text, level.words))}")
    return lines


def _text(word: SpeltWord) -> str:
    rest = "".join(f", {name} {share:.2f}" for name, share in word.others)
    return f"{word.word} {word.probability:.2f}{f' ({rest[2:]})' if rest else ''}"
