"""`pyramid index` and `pyramid search`: clips by their coarse tokens, found by text or by another clip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tasks.batches import side_by_side
from tasks.console import DONE, Console
from tasks.files import claim_folder, find_clips
from tasks.options import Device, Inputs, Json, Model, Overwrite, check_device
from tasks.reading import BATCH, Batch, Detail, Every, Load, Shown, shown_clips

if TYPE_CHECKING:
    from torch import Tensor

    from pyramid.retrieval import ClipIndex, Hit
    from pyramid.tokenizer import PyramidTokenizer


def index(
    inputs: Inputs,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of the index.")] = Path("runs/index"),
    detail: Detail = None,
    every: Every = None,
    batch: Batch = BATCH,
    model: Model = None,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> int:
    """Make an index of clips, or of every few seconds of them, to search in."""
    with Console("index", as_json, writes=True) as console:
        paths = find_clips(inputs)
        claim_folder(out, overwrite, inputs=[Path(name) for name in inputs if Path(name).is_dir()])
        import torch

        from pyramid.levels import check_detail
        from pyramid.retrieval import ClipIndex, word_places
        from tasks.models import DEFAULTS, fingerprint, load_tokenizer

        tokenizer = load_tokenizer(model, check_device(device))
        config = tokenizer.config
        if tokenizer.table is None:
            raise ValueError("--model: expected a tokenizer with levels of words, got one without")
        coarse = max(tokenizer.word_levels) + 1 if detail is None else detail
        coarse = check_detail(coarse, tokenizer.num_levels, "--detail")
        ids, names, spans, code = [], [], [], DONE

        def work(batch: list[tuple[Path, Load]]) -> tuple[list[Shown | Exception], Tensor | None]:
            loaded = [load() for _, load in batch]
            if not (good := [shown.video for shown in loaded if isinstance(shown, Shown)]):
                return loaded, None
            tokens = tokenizer.encode(torch.cat(good).to(tokenizer.device), coarse)
            return loaded, tokens.flatten().to(torch.int32).cpu()

        clips = shown_clips(paths, config.num_frames, config.size, every)
        for clips_read, (loaded, codes) in side_by_side(console.track(clips, "clips"), work, batch):
            for (path, _), shown in zip(clips_read, loaded, strict=True):
                if isinstance(shown, Exception):
                    code = console.refuse(path, shown)
                    continue
                names.append(str(path))
                spans.append(None if shown.end is None else (round(shown.start, 3), round(shown.end, 3)))
            ids += [] if codes is None else [codes]
        if not ids:
            raise ValueError(f"expected at least one clip that can be read, got none of {len(paths)}")
        pyramids = [pyramid.prefix(coarse) for pyramid in tokenizer.pyramids(config.num_frames)]
        places = word_places(pyramids, tokenizer.word_levels)
        shape = (config.num_frames, *config.size)
        made_by = (str(model or DEFAULTS["tokenizer"]), fingerprint(tokenizer))
        made = ClipIndex(torch.cat(ids), names, places, tokenizer.table, shape, coarse, *made_by, spans)
        made.save(out)
        record = {"out": str(out), "clips": len(made), "detail": coarse, "words_a_clip": len(places)}
        console.emit(record, f"{out}: {len(made)} clips, {len(places)} words each")
    return code


def search(
    folder: Annotated[Path, typer.Argument(metavar="INDEX", help="What `pyramid index` made.", show_default=False)],
    query: Annotated[str | None, typer.Argument(metavar="[TEXT]", show_default=False)] = None,
    like: Annotated[
        Path | None,
        typer.Option("--like", help="A clip to find the like of, instead of TEXT.", show_default=False),
    ] = None,
    top: Annotated[int, typer.Option("--top", "-n", min=1, help="How many to show.")] = 10,
    rerank: Annotated[
        bool,
        typer.Option("--rerank", help="Sort ten times as many by how likely a language model finds TEXT for each."),
    ] = False,
    model: Model = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> int:
    """Find clips of an index by text, or by a clip, best first."""
    with Console("search", as_json) as console:
        if (query is None) == (like is None):
            raise ValueError("expected TEXT or --like CLIP, one of them")
        if rerank and query is None:
            raise ValueError("--rerank: expected TEXT, which it looks at again")
        from pyramid.retrieval import ClipIndex

        clips = ClipIndex.load(folder)
        made_by = model or clips.tokenizer
        if query is not None:
            if unknown := clips.unknown(query):
                console.note(f"not in the index's table of words, and left out: {', '.join(unknown)}")
            hits = clips.search(query, 10 * top if rerank else top)
        else:
            assert like is not None
            hits = clips.search(_words_of(like, clips, made_by, device), top)
        if rerank and query is not None:
            hits = _again(query, hits, clips, made_by, device)[:top]
        for rank, hit in enumerate(hits, start=1):
            span = {} if hit.span is None else dict(zip(("start", "end"), hit.span, strict=True))
            record = {"rank": rank, "input": hit.name, **span, "score": round(hit.score, 4)}
            place = "" if hit.span is None else f" {hit.span[0]:g}-{hit.span[1]:g} s"
            console.emit(record, f"{rank}. {hit.name}{place} ({hit.score:.2f})")
    return DONE


def _check(clips: ClipIndex, tokenizer: PyramidTokenizer, model: str) -> None:
    """Raises ValueError for another tokenizer than that of the index."""
    from tasks.models import fingerprint

    if (found := fingerprint(tokenizer)) != clips.fingerprint:
        wanted = f"{clips.tokenizer}, {clips.fingerprint}"
        raise ValueError(f"--model: expected the tokenizer of the index, {wanted}, got that of {model}, {found}")


def _words_of(path: Path, clips: ClipIndex, model: str, device: str) -> Tensor:
    """Word ids (P,) of a clip, read as the clips of the index were."""
    import torch

    from tasks.clips import read_spread
    from tasks.models import load_tokenizer

    tokenizer = load_tokenizer(model, check_device(device))
    _check(clips, tokenizer, model)
    frames, height, width = clips.shape
    video, _ = read_spread(path, frames, (height, width))
    with torch.inference_mode():
        flat = tokenizer.encode(video.to(tokenizer.device), clips.detail).flatten().cpu()
    return flat[0, clips.word_places]


def _again(query: str, hits: list[Hit], clips: ClipIndex, model: str, device: str) -> list[Hit]:
    """The same clips by log-probability of the text as their caption."""
    from dataclasses import replace

    from tasks.models import load_lm

    lm = load_lm(model, check_device(device))
    _check(clips, lm.tokenizer, model)
    pyramids = [pyramid.prefix(clips.detail) for pyramid in lm.tokenizer.pyramids(clips.shape[0])]
    scored = []
    for first in range(0, len(hits), 32):
        part = hits[first : first + 32]
        tokens = clips.tokens([hit.place for hit in part], pyramids)
        likely = lm.log_likelihoods(tokens, [query], detail=clips.detail)[:, 0].tolist()
        scored += [replace(hit, score=score) for hit, score in zip(part, likely, strict=True)]
    return sorted(scored, key=lambda hit: -hit.score)
