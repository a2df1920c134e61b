"""`pyramid caption`: what a clip shows, read from the coarse levels of its pyramid."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from tasks.batches import side_by_side
from tasks.console import DONE, Console
from tasks.files import find_clips
from tasks.options import Device, Dtype, Json, Model, Overwrite, Seed, check_device, check_dtype
from tasks.reading import BATCH, Batch, ClipsOrStream, Detail, Every, Format, How, Said, Subtitles, or_error, read_clips

if TYPE_CHECKING:
    from torch import Tensor

    from lm.model import PyramidLM
    from lm.reading import Answer
    from pyramid.tokens import TokenPyramid
    from tasks.corpus import Made, Sample


def caption(
    inputs: ClipsOrStream,
    detail: Detail = None,
    words: Annotated[bool, typer.Option("--words", help="Show the words at the top of the pyramid too.")] = False,
    every: Every = None,
    out: Subtitles = None,
    kind: Format = "srt",
    beams: Annotated[int, typer.Option("--beams", min=1, help="Search for the likeliest sentence.")] = 1,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="Above 0 draws the sentence.")] = 0.0,
    batch: Batch = BATCH,
    engine: Annotated[str, typer.Option("--engine", help="Of shards: torchrun, or ray for a cluster.")] = "torchrun",
    model: Model = None,
    overwrite: Overwrite = False,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> int:
    """Caption clips, one line a file; or one every few seconds, as subtitles; or WebDataset shards, into the folder
    --out, in a run that can be killed and started again.

    A clip is cropped and resized to the model's size, and the frames read are spread over its whole length.
    """
    with Console("caption", as_json, writes=out is not None) as console:
        from pyramid.levels import check_detail
        from tasks.corpus import shards_of
        from tasks.models import load_lm

        decoding = TextDecoding(beams, temperature, seed)
        if shards := shards_of(inputs):
            for name, given in (("--every", every), ("--words", words), ("--overwrite", overwrite)):
                if given:
                    raise ValueError(f"{name}: expected clips, got shards, whose run goes on by itself")
            weights = _Weights(model, check_device(device), check_dtype(dtype))
            return _of_shards(shards, out, detail, decoding, batch, engine, weights, console)
        paths = find_clips(inputs, streams=True)

        lm = load_lm(model, check_device(device), check_dtype(dtype))
        lm.vocabulary.task("caption")
        tokenizer = lm.tokenizer
        read = check_detail(lm.config.caption_detail if detail is None else detail, tokenizer.num_levels, "--detail")
        total = sum(pyramid.num_tokens for pyramid in tokenizer.pyramids(tokenizer.config.num_frames))

        def say(tokens: TokenPyramid, places: Sequence[int]) -> list[Said]:
            answers = lm.ask(tokens, None, read, **decoding.of(places))
            said = []
            for answer, top in zip(answers, tokenizer.words(tokens), strict=True):
                fields = {"tokens_read": tokens.num_tokens(), "tokens_total": total, "words": top}
                lines = tuple(
                    f"  chunk {c}, level {k}: {' '.join(level)}"
                    for c, levels in enumerate(top)
                    for k, level in enumerate(levels, start=1)
                )
                said.append(Said(answer.text, answer.confidence, fields, lines if words else ()))
            return said

        how = How(read, batch, every, out, kind, overwrite)
        return read_clips(lm, paths, say, how, console, "caption")


class TextDecoding(NamedTuple):
    """How texts are found (`lm.reading.answers`); a clip's draw hangs on its place, not on those it is read with."""

    beams: int
    temperature: float
    seed: int

    def of(self, places: Sequence[int]) -> dict[str, Any]:
        seeds = [(self.seed + place) % (1 << 63) for place in places]
        return {"beams": self.beams, "temperature": self.temperature, "seed": seeds}


class _Weights(NamedTuple):
    model: str | None
    device: str
    dtype: str


def _of_shards(
    shards: list[Path],
    out: Path | None,
    detail: int | None,
    how: TextDecoding,
    batch: int,
    engine: str,
    weights: _Weights,
    console: Console,
) -> int:
    from tasks.corpus import run_shards
    from tasks.frechet import weights_hash
    from tasks.models import load_lm, part_of

    if out is None:
        raise ValueError("--out: expected a folder for the captions of shards, got none")

    def make_work() -> _Captions:
        return _Captions(load_lm(*weights), detail, how, batch)

    settings: dict[str, Any] = {
        "verb": "caption",
        "model": weights_hash(part_of(weights.model, "lm")),
        "dtype": weights.dtype,
    }
    settings |= {"detail": detail, **how._asdict()}
    index = run_shards(shards, out, make_work, settings, console, engine)
    console.emit(index | {"out": str(out)}, f"{out}: {index['samples']} samples, {index['broken']} broken")
    return DONE


class _Captions:
    """Samples of a shard to their JSON with a caption, in batches; a caption that was there before is `caption_before`.
    What cannot be read keeps its place, and says why."""

    def __init__(self, lm: PyramidLM, detail: int | None, how: TextDecoding, batch: int) -> None:
        from pyramid.levels import check_detail

        lm.vocabulary.task("caption")
        self.lm, self.how, self.batch = lm, how, batch
        self.detail = check_detail(lm.config.caption_detail if detail is None else detail, lm.num_levels, "--detail")

    def __call__(self, samples: Iterable[Sample]) -> Iterator[Made]:
        for _, made in side_by_side(samples, self._made, self.batch):
            yield from made

    def _made(self, samples: list[Sample]) -> list[Made]:
        import torch

        from tasks.corpus import Made, to_bytes, unreadable

        videos = [or_error(partial(self._video, sample)) for sample in samples]
        good = [video for video in videos if not isinstance(video, Exception)]
        keys = [sample.key for sample, video in zip(samples, videos, strict=True) if not isinstance(video, Exception)]
        answers = self._answers(torch.cat(good), keys) if good else iter([])
        made = []
        for sample, video in zip(samples, videos, strict=True):
            fields = sample.fields()
            if isinstance(video, Exception):
                made.append(unreadable(sample, video))
                continue
            answer, familiar = next(answers)
            if "caption" in fields:
                fields["caption_before"] = fields["caption"]
            fields |= {"caption": answer.text, "confidence": round(answer.confidence, 4), "detail": self.detail}
            fields |= {} if familiar is None else {"familiar": familiar}
            made.append(Made(sample.key, {"json": to_bytes(fields)}))
        return made

    def _answers(self, video: Tensor, keys: Sequence[str]) -> Iterator[tuple[Answer, bool | None]]:
        from tasks.reading import familiar

        tokens = self.lm.tokenizer.encode(video.to(self.lm.device), self.detail)
        decoding = self.how.of([zlib.crc32(key.encode()) for key in keys])
        said = self.lm.ask(tokens, None, self.detail, **decoding)
        yield from zip(said, familiar(self.lm, tokens), strict=True)

    def _video(self, sample: Sample) -> Tensor:
        from tasks.clips import read_spread
        from tasks.corpus import as_file

        config = self.lm.tokenizer.config
        with as_file(sample) as path:
            return read_spread(path, config.num_frames, config.size)[0]
