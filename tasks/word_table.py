"""`pyramid data words`: the frozen vocabulary of the word levels, a file for `pyramid train tokenizer words=FILE`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tasks.console import DONE, Console
from tasks.options import Json, Out, Overwrite

if TYPE_CHECKING:
    from pyramid.words import WordTable

_MINILM, _CAPTIONS = "minilm", "captions"


def words(
    source: Annotated[
        str,
        typer.Argument(
            help="minilm (the package of `make words`), captions (no text model at all), or the folder or hub id of "
            "any transformers text model: encoder, causal LM or CLIP.",
        ),
    ] = _MINILM,
    captions: Annotated[
        list[Path] | None,
        typer.Option("--captions", help="metadata.jsonl or text, a caption a line; its words come first. Repeat."),
    ] = None,
    only: Annotated[
        Path | None, typer.Option("--only", help="File of words, one a line, instead of the model's own vocabulary.")
    ] = None,
    num: Annotated[int, typer.Option("--num", min=2, help="The most words.")] = 4096,
    dim: Annotated[int, typer.Option("--dim", min=1, help="The most numbers of an embedding.")] = 96,
    space: Annotated[
        str, typer.Option("--space", help="sentence, or input: the model's input embeddings, as SPAE has it.")
    ] = "sentence",
    out: Out = Path("runs/words.safetensors"),
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> int:
    """Make a word table: whole words of a text model, embedded, without duplicates, centred, with a hash.

    Words of --captions come first, so that what captions say can be named. A tokenizer is trained on the table by
    `pyramid train tokenizer words=FILE`.
    """
    with Console("data words", as_json, writes=True) as console:
        if out.exists() and not overwrite:
            raise FileExistsError(f"{out}: exists already; give another --out, or --overwrite")
        if space not in ("sentence", "input"):
            raise ValueError(f"--space: expected sentence or input, got {space!r}")
        if source == _CAPTIONS and (only is not None or space != "sentence" or not captions):
            raise ValueError("captions: expected --captions, and neither --only nor --space, which are for text models")
        table = _make(source, list(_captions(captions or [])), only, num, dim, space)
        out.parent.mkdir(parents=True, exist_ok=True)
        table.save(out)
        record = {
            "out": str(out),
            "source": table.source,
            "words": len(table),
            "dim": table.embeddings.shape[1],
            "hash": table.hash,
            "first": list(table.words[:8]),
        }
        text = f"{out}: {len(table)} words of {table.source}, {record['dim']} numbers each, hash {table.hash}: "
        console.emit(record, f"{text}{' '.join(table.words[:8])} ...")
        return DONE


def _make(source: str, captions: list[str], only: Path | None, num: int, dim: int, space: str) -> WordTable:
    from transformers.utils import logging

    from pyramid.vocabulary import build_word_table, learn_word_table, minilm_folder
    from pyramid.words import content_words

    if source == _CAPTIONS:
        return learn_word_table(captions, num_words=num, dim=dim)
    logging.disable_progress_bar()
    model, name = (minilm_folder(), "all-MiniLM-L6-v2") if source == _MINILM else (source, None)
    extra = (word for caption in captions for word in content_words(caption))
    chosen = only.read_text(encoding="utf8").split() if only is not None else None
    kind: Literal["sentence", "input"] = "input" if space == "input" else "sentence"
    return build_word_table(model, num_words=num, dim=dim, extra=extra, only=chosen, space=kind, source=name)


def _captions(files: list[Path]) -> Iterator[str]:
    """A caption a line: of metadata.jsonl the field "caption" where a line has it, of other files the line."""
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf8").splitlines(), start=1):
            if file.suffix != ".jsonl":
                yield line
                continue
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            if not isinstance(row, dict) or not isinstance(row.get("caption", ""), str):
                raise ValueError(
                    f"{file}, line {number}: expected a JSON object, its caption a string, got {line[:60]!r}"
                )
            yield row.get("caption", "")
