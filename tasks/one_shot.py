"""Omniglot's one-shot benchmark: in each of 20 runs, 20 pictures of characters, one of each of 20 kinds, and the 20
pictures they are to be matched to, by other drawers; alphabets that nothing was trained on (Lake, Salakhutdinov and
Tenenbaum, Science 2015). `read_runs` reads the set's `all_runs.zip`, `error` scores a way of telling which is nearest.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pyramid.data.jitter import jitter
from pyramid.tokenizer import PyramidTokenizer
from pyramid.tokens import TokenPyramid
from tasks.class_reading import LabelledClips, Row
from tasks.classifiers import CodeClassifier, Fitted

RUNS = 20
VIEWS = 16  # of each picture, where several are taken
_DARKER = 1.6  # lines of the pictures are a pixel wide once they are small


@dataclass(frozen=True, eq=False)
class Run:
    """`asked`, `known` (20, 3, H, W) in [-1, 1]; `truth` (20,): which of `known` each of `asked` is."""

    asked: Tensor
    known: Tensor
    truth: Tensor


def read_runs(archive: Path, size: tuple[int, int]) -> list[Run]:
    """Raises FileNotFoundError, or ValueError for a file that is not this benchmark."""
    if not archive.is_file():
        raise FileNotFoundError(f"{archive}: expected all_runs.zip of Omniglot, found nothing")
    runs = []
    try:
        with zipfile.ZipFile(archive) as file:
            for number in range(1, RUNS + 1):
                folder = f"run{number:02d}"
                lines = file.read(f"{folder}/class_labels.txt").decode("ascii").split()
                asked, known = lines[::2], sorted(set(lines[1::2]))
                first, second = (
                    torch.stack([_picture(file, name, size) for name in names]) for names in (asked, known)
                )
                runs.append(Run(first, second, torch.tensor([known.index(name) for name in lines[1::2]])))
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{archive}: expected all_runs.zip of Omniglot, got another file ({error})") from None
    return runs


def _picture(file: zipfile.ZipFile, name: str, size: tuple[int, int]) -> Tensor:
    """(3, H, W): black on white."""
    with Image.open(io.BytesIO(file.read(name))) as image:
        ink = 1 - torch.from_numpy(np.array(image.convert("L"), dtype=np.float32)) / 255
    ink = nn.functional.interpolate(ink[None, None], size, mode="area")[0] * _DARKER
    return (1 - 2 * ink.clamp(0, 1)).expand(3, -1, -1)


@torch.inference_mode()
def run_tokens(
    tokenizer: PyramidTokenizer, run: Run, num_frames: int, detail: int, views: int = 1, seed: int = 0
) -> tuple[list[TokenPyramid], list[TokenPyramid]]:
    """`asked` and `known` as clips, white paper, then the finished character, as clips of writing end, `detail` levels
    of
    them: so many times each, first as they are, then turned, scaled, stretched and shifted a little, each time
    otherwise."""
    generator = torch.Generator().manual_seed(seed)
    sides: tuple[list[TokenPyramid], list[TokenPyramid]] = ([], [])
    for tokens, pictures in zip(sides, (run.asked, run.known), strict=True):
        for view in range(views):
            moved = jitter(pictures[:, :, None], 1.0, generator) if view else pictures[:, :, None]
            video = moved.repeat(1, 1, num_frames, 1, 1)
            video[:, :, 0] = 1.0
            tokens.append(tokenizer.encode(video, detail))
    return sides


def error(runs: Iterable[tuple[Tensor, Tensor, Tensor]]) -> float:
    """Share of the pictures that are matched wrongly where the nearest is taken by cosine: of each run the vectors
    (20, F) of those asked for and of those known, less the mean of both, and the truth (20,)."""
    wrong = []
    for asked, known, truth in runs:
        mean = torch.cat([asked, known]).mean(dim=0)
        a, b = (nn.functional.normalize(part - mean, dim=1) for part in (asked, known))
        wrong.append(((a @ b.T).argmax(dim=1) != truth.to(a.device)).float().mean())
    return float(torch.stack(wrong).mean())


def score_one_shot(
    tokenizer: PyramidTokenizer,
    runs: Sequence[Run],
    fitted: Mapping[int, Fitted],
    train: LabelledClips,
    details: Sequence[int],
    seed: int = 0,
) -> list[Row]:
    """Errors at each detail, of one view of a picture and of the mean of several: by the nearest codes as they are; by
    the nearest vector that a classifier, fitted on other alphabets, makes of the codes of the last chunk alone. And by
    pixels, and by chance."""
    num_frames = train.pixels.shape[2]
    tokens = [run_tokens(tokenizer, run, num_frames, max(details), VIEWS, seed) for run in runs]
    truth = [run.truth for run in runs]
    rows: list[Row] = [{"of": "chance", "error": 1 - 1 / len(runs[0].known)}]
    pixels = [(torch.cdist(run.asked.flatten(1), run.known.flatten(1)).argmin(dim=1) != run.truth) for run in runs]
    rows.append({"of": "nearest pixels", "error": float(torch.cat(pixels).float().mean())})
    for detail in details:
        last = len(tokens[0][0][0].ids) - 1
        count = tokens[0][0][0].pyramids[last].offsets[detail]
        read = partial(_vectors, cast(CodeClassifier, fitted[detail].model), detail, last)
        for name, vectors in (("nearest code", partial(_codes, tokenizer, detail)), ("read from codes", read)):
            known = [[torch.stack([vectors(view) for view in side]) for side in run] for run in tokens]
            for views in (1, VIEWS):
                means = [[side[:views].mean(dim=0) for side in run] for run in known]
                wrong = error((asked, known, right) for (asked, known), right in zip(means, truth, strict=True))
                row = {"of": name, "detail": detail, "tokens_of_last_chunk": count, "views": views}
                rows.append(row | {"error": wrong})
    return rows


@torch.inference_mode()
def _codes(tokenizer: PyramidTokenizer, detail: int, tokens: TokenPyramid) -> Tensor:
    """Codes of the last chunk, side by side."""
    levels: Any = tokenizer.levels.levels
    ids = tokens.ids[-1][:detail]
    codes = [levels[k].quantizer.ids_to_codes(part).float().flatten(1) for k, part in enumerate(ids)]
    return torch.cat(codes, dim=1).cpu()


@torch.inference_mode()
def _vectors(model: CodeClassifier, detail: int, chunk: int, tokens: TokenPyramid) -> Tensor:
    return model.vectors(tokens.truncate(detail).flatten().cpu(), [chunk]).float()
