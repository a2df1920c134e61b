"""`pyramid info`: what a model holds (levels, grids, tokens, parameters, hashes), or what a clip is."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.console import DONE, Console
from tasks.models import codebook_sizes, part_of
from tasks.options import Json

if TYPE_CHECKING:
    from pyramid.tokenizer import PyramidTokenizer


def info(
    target: Annotated[str | None, typer.Argument(metavar="[MODEL|FILE]", show_default=False)] = None,
    as_json: Json = False,
) -> int:
    """Describe a model (the default tokenizer without one), a clip, or a file of tokens."""
    with Console("info", as_json) as console:
        path = Path(target or "")
        if path.suffix == ".safetensors" and path.is_file():
            record = describe_tokens(path)
        elif path.is_file():
            record = describe_clip(path)
        else:
            record = describe_model(target)
        console.emit(record, "\n".join(_lines(record)))
    return DONE


def describe_clip(path: Path) -> dict[str, Any]:
    """What `probe` finds. Raises VideoError for a file that gives no video."""
    from pyramid.data.frames import probe

    return asdict(probe(path))


def describe_tokens(path: Path) -> dict[str, Any]:
    """A file that `TokenPyramid.save` wrote."""
    from pyramid.tokens import TokenPyramid

    tokens = TokenPyramid.load(path)
    return {
        "path": str(path),
        "clips": tokens.batch_size,
        "frames": tokens.num_frames,
        "height": tokens.height,
        "width": tokens.width,
        "chunks": tokens.num_chunks,
        "tokens_by_detail": [tokens.num_tokens(k) for k in range(1, tokens.num_levels + 1)],
        "grids": [[level.grid for level in pyramid.levels] for pyramid in tokens.pyramids],
    }


def describe_model(model: str | None) -> dict[str, Any]:
    """A model folder: its tokenizer by level, and what else it holds."""
    from tasks.models import load_tokenizer

    folder = part_of(model, "tokenizer")
    tokenizer = load_tokenizer(model)
    root = folder.parent if folder.name == "tokenizer" else folder
    parts = {
        part.name: _describe_part(part)
        for part in (root / "tokenizer", root / "lm", root / "judge", folder)
        if (part / "config.json").is_file()
    }
    return {"model": str(root), "tokenizer": _describe_tokenizer(tokenizer), "parts": parts}


def _describe_tokenizer(tokenizer: PyramidTokenizer) -> dict[str, Any]:
    c = tokenizer.config
    pyramids = tokenizer.pyramids(c.num_frames)
    sizes = codebook_sizes(tokenizer)
    levels = []
    for index, config in enumerate(c.levels):
        grids = [pyramid.levels[index].grid for pyramid in pyramids]
        tokens = sum(math.prod(grid) for grid in grids)
        bits = tokens * math.log2(sizes[index])
        levels.append(
            {"codebook": config.codebook, "codes": sizes[index], "grids": grids, "tokens": tokens, "bits": round(bits)}
        )
    return {
        "clip": f"{c.num_frames} frames of {c.height}x{c.width} at {c.fps:g} a second",
        "chunk_frames": c.chunk_frames,
        "parameters": sum(p.numel() for p in tokenizer.parameters()),
        "tokens": sum(level["tokens"] for level in levels),
        "word_table": tokenizer.table.hash if tokenizer.table is not None else None,
        "levels": levels,
    }


def _describe_part(folder: Path) -> dict[str, Any]:
    weights = sorted(folder.rglob("*.safetensors"))
    return {
        "format": json.loads((folder / "config.json").read_text(encoding="utf8")).get("format"),
        "megabytes": round(sum(path.stat().st_size for path in weights) / 1e6, 2),
        "sha256": {path.relative_to(folder).as_posix(): _hash(path) for path in weights},
    }


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _lines(record: dict[str, Any], indent: str = "") -> list[str]:
    """A record as indented lines; a list of records as numbered ones."""
    lines = []
    for key, value in record.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}", *_lines(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for number, item in enumerate(value, start=1):
                text = "  ".join(f"{name} {what}" for name, what in item.items())
                lines.append(f"{indent}{key.removesuffix('s')} {number}: {text}")
        else:
            lines.append(f"{indent}{key}: {_text(value)}")
    return lines


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
