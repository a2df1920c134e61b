"""`pyramid tokenize`: clips, or shards of them, become tokens: whole clips at the tokenizer's rate and size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasks.console import DONE, Console
from tasks.files import find_clips, name_outputs
from tasks.options import Device, Inputs, Json, Model, Overwrite, check_device

if TYPE_CHECKING:
    from pyramid.tokenizer import PyramidTokenizer
    from pyramid.tokens import TokenPyramid
    from tasks.corpus import Made, Sample

SUFFIX = "tokens.safetensors"


def tokenize(
    inputs: Inputs,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the tokens.")] = Path("runs/tokens"),
    detail: Annotated[
        int | None, typer.Option("--detail", "-d", help="Levels to keep; all by default.", show_default=False)
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="Of shards: torchrun, or ray for a cluster.")] = "torchrun",
    model: Model = None,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> int:
    """Tokens of clips, a file each; of WebDataset shards, a shard each, whose run can be killed and started again."""
    with Console("tokenize", as_json, writes=True) as console:
        from pyramid.levels import check_detail
        from tasks.corpus import run_shards, shards_of
        from tasks.models import codebook_sizes, load_tokenizer, part_of

        check_device(device)
        shards = shards_of(inputs)
        if shards:
            from tasks.frechet import weights_hash

            settings = {"verb": "tokenize", "model": weights_hash(part_of(model, "tokenizer")), "detail": detail}

            def make_work() -> Any:
                return _Work(load_tokenizer(model, device), detail)

            index = run_shards(shards, out, make_work, settings, console, engine)
            console.emit(index | {"out": str(out)}, f"{out}: {index['samples']} samples, {index['broken']} broken")
            return DONE
        tokenizer = load_tokenizer(model, device)
        read = check_detail(detail, tokenizer.num_levels, "--detail")
        paths = find_clips(inputs)
        targets = dict(zip(paths, name_outputs(paths, out, SUFFIX), strict=True))
        bits = [(size - 1).bit_length() for size in codebook_sizes(tokenizer)]

        def work(path: Path) -> None:
            target = targets[path]
            if target.exists() and not overwrite:
                raise FileExistsError(f"{target}: exists already; give another --out, or --overwrite")
            tokens = clip_tokens(tokenizer, path, read)
            target.parent.mkdir(parents=True, exist_ok=True)
            tokens.save(target, overwrite=overwrite)
            counts = [sum(p.counts[level] for p in tokens.pyramids) for level in range(tokens.num_levels)]
            size = sum(count * width for count, width in zip(counts, bits, strict=False))
            record = {
                "input": str(path),
                "output": str(target),
                "frames": tokens.num_frames,
                "tokens": sum(counts),
                "tokens_by_level": counts,
                "bytes_of_ids": -(-size // 8),
            }
            said = f"{tokens.num_frames} frames, {sum(counts)} tokens, {-(-size // 8)} bytes of ids"
            console.emit(record, f"{target}: {said}")

        return console.each(paths, work)


def clip_tokens(tokenizer: PyramidTokenizer, path: Path, detail: int) -> TokenPyramid:
    """The tokens of a whole clip at the tokenizer's rate and size, cropped, in constant memory but for the tokens.
    Raises VideoError for a file that gives no frame."""
    from itertools import islice

    import numpy as np
    import torch

    from pyramid.data.frames import iter_frames
    from pyramid.data.transforms import from_uint8
    from pyramid.tokens import concatenate_chunks

    config = tokenizer.config

    def chunks() -> Iterator[torch.Tensor]:
        frames = iter_frames(path, fps=config.fps, size=config.size, fit="crop")
        run = list(islice(frames, 1))
        while run:
            yield from_uint8(np.stack(run))[None].to(tokenizer.device)
            run = list(islice(frames, config.chunk_frames))

    with torch.inference_mode():
        return concatenate_chunks([part.to("cpu") for part in tokenizer.encode_stream(chunks(), detail)])


class _Work:
    """Samples of a shard to their tokens; what cannot be read keeps its place, and says why."""

    def __init__(self, tokenizer: PyramidTokenizer, detail: int | None) -> None:
        from pyramid.levels import check_detail

        self.tokenizer, self.detail = tokenizer, check_detail(detail, tokenizer.num_levels, "--detail")

    def __call__(self, samples: Iterable[Sample]) -> Iterator[Made]:
        import tempfile

        from tasks.corpus import Made, as_file, to_bytes, unreadable

        for sample in samples:
            try:
                with as_file(sample) as path, tempfile.TemporaryDirectory(prefix="pyramid-") as folder:
                    tokens = clip_tokens(self.tokenizer, path, self.detail)
                    tokens.save(Path(folder) / SUFFIX)
                    data = (Path(folder) / SUFFIX).read_bytes()
            except (OSError, ValueError) as error:
                yield unreadable(sample, error)
                continue
            fields = sample.fields() | {"frames": tokens.num_frames, "tokens": tokens.num_tokens()}
            yield Made(sample.key, {"json": to_bytes(fields), SUFFIX: data})
