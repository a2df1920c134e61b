"""`pyramid data classes`: words that classes are told by whose names say nothing of how they look, a file for `pyramid
train tokenizer semantic.class_words=FILE`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tasks.console import DONE, Console
from tasks.options import Json, Out, Overwrite, Seed


def classes(
    clips: Annotated[Path, typer.Argument(help="Folder of clips whose metadata has labels.", show_default=False)],
    each: Annotated[int, typer.Option("--each", min=1, help="Words of a class.")] = 6,
    pool: Annotated[int, typer.Option("--pool", min=2, help="Words that the classes share.")] = 48,
    words: Annotated[
        Path | None, typer.Option("--words", help="A word table; by default the one that ships.", show_default=False)
    ] = None,
    out: Out = Path("runs/classes.json"),
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> int:
    """Give each class of a folder some words of its own, drawn from a pool that no caption of the folder uses.

    Each word of the pool then parts the classes in two, and all of them together tell one from another, as the bits of
    an error-correcting code do (Dietterich and Bakiri, 1995).
    """
    with Console("data classes", as_json, writes=True) as console:
        from pyramid.data.folder import FolderDataset
        from pyramid.files import replacing
        from pyramid.words import WordTable

        if out.exists() and not overwrite:
            raise FileExistsError(f"{out}: exists already; give another --out, or --overwrite")
        if each > pool:
            raise ValueError(f"--each: expected at most the {pool} words of --pool, got {each}")
        table = WordTable.load(words) if words else WordTable.load()
        listed = FolderDataset(clips, num_frames=1, size=(1, 1)).clips
        labels = sorted({str(clip.label) for clip in listed if clip.label is not None})
        if len(labels) < 2:
            raise ValueError(f"{clips}: expected labels of two classes or more in its metadata, got {len(labels)}")
        taken = {index for clip in listed for index in table.content_ids(clip.caption)}
        free = [index for index in range(len(table)) if index not in taken]
        if len(free) < pool:
            raise ValueError(f"--pool: expected at most {len(free)}, the words that no caption uses, got {pool}")
        shared = [table.words[index] for index in _order(free, f"{seed}/pool")[:pool]]
        chosen = {label: _order(shared, f"{seed}/{label}")[:each] for label in labels}
        with replacing(out) as part:
            part.write_text(json.dumps(chosen, indent=0, ensure_ascii=False) + "\n", encoding="utf8")
        record = {"out": str(out), "classes": len(chosen), "each": each, "pool": pool}
        console.emit(record, f"{out}: {each} of {pool} words for each of {len(chosen)} classes")
        return DONE


def _order(items: list[Any], key: str) -> list[Any]:
    """In an order that the key decides, on any machine and version."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{key}/{item}".encode()).digest())
