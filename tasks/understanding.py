"""How well clips are read from the first levels of their pyramids: `score_captions`, `score_questions`, at every
detail, beside answers that look at no clip; and how well they are drawn from them, `score_pixels`. Rows of plain
values; clips are of `shapes`, whose captions can be parsed and whose questions have one answer."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyramid.data import grammar
from pyramid.data.shapes import ShapesDataset
from pyramid.metrics import psnr
from pyramid.tokens import TokenPyramid
from tasks.generation import in_batches, share

if TYPE_CHECKING:
    from lm.model import PyramidLM
    from pyramid.tokenizer import PyramidTokenizer

Row = dict[str, Any]
NAMES = ("shape", "colour", "size", "motion")
BATCH = 32
LEARNT = 2000  # training clips that the answers which look at no clip are learned from


@dataclass(frozen=True)
class Clips:
    """Clips of a world with one object, or of several: what is true of them, all their tokens, and their pixels
    `video` (N, 3, T, H, W)."""

    name: str
    items: list[dict]
    tokens: TokenPyramid
    video: Tensor

    @staticmethod
    @torch.inference_mode()
    def of(lm: PyramidLM, name: str, dataset: ShapesDataset, first: int, count: int) -> Clips:
        """`count` clips from index `first` on."""
        items: list[dict] = []
        videos, flat = [], []
        for start, stop in in_batches(count, BATCH):
            part = dataset.__getitems__(list(range(first + start, first + stop)))
            videos.append(torch.stack([item.pop("video") for item in part]))
            flat.append(lm.tokenizer.encode(videos[-1].to(lm.device)).flatten().cpu())
            items += part
        c = lm.tokenizer.config
        shape = {"num_frames": c.num_frames, "height": c.height, "width": c.width}
        tokens = TokenPyramid.unflatten(torch.cat(flat), lm.tokenizer.pyramids(c.num_frames), **shape)
        return Clips(name, items, tokens, torch.cat(videos))

    @property
    def single(self) -> bool:
        return all(len(item["attributes"].objects) == 1 for item in self.items)


@torch.inference_mode()
def score_pixels(tokenizer: PyramidTokenizer, clips: Clips, details: Sequence[int]) -> list[Row]:
    """PSNR, in dB, of what each prefix decodes to, mean over the clips."""
    rows = []
    for detail in details:
        total = 0.0
        for start, stop in in_batches(len(clips.items), BATCH):
            decoded = tokenizer.decode(clips.tokens[slice(start, stop)], detail)
            total += float(psnr(decoded.cpu(), clips.video[start:stop]).sum())
        row = {"clips": clips.name, "of": "pixels", "detail": detail, "tokens": clips.tokens.num_tokens(detail)}
        rows.append(row | {"psnr": total / len(clips.items)})
    return rows


def score_captions(lm: PyramidLM, clips: Clips, details: Sequence[int]) -> list[Row]:
    """Captions of clips with one object: the share whose shape, colour, size and motion are right, each and "all"; how
    many clips a second, tokenizing left out; how likely the model finds that it is right ("confidence"). The first row:
    what is most frequent, whatever the clip."""
    truth = [item["attributes"].objects[0] for item in clips.items]
    rows = []
    for detail in details:
        begin = time.perf_counter()
        answers = []
        for start, stop in in_batches(len(truth), BATCH):
            answers += lm.ask(clips.tokens[slice(start, stop)], None, detail)
        seconds = time.perf_counter() - begin
        found = [grammar.parse(answer.text) for answer in answers]
        right = [
            {name: said.get(name) == getattr(thing, name) for name in NAMES}
            for said, thing in zip(found, truth, strict=True)
        ]
        row: Row = {"clips": clips.name, "of": "captions", "detail": detail, "tokens": clips.tokens.num_tokens(detail)}
        row |= {name: share([each[name] for each in right]) for name in NAMES}
        row |= {"all": share([all(each.values()) for each in right])}
        row |= {"confidence": sum(answer.confidence for answer in answers) / len(answers)}
        rows.append(row | {"a_second": len(truth) / seconds, "count": len(truth)})
    guess = {name: Counter(getattr(thing, name) for thing in truth).most_common(1)[0][1] / len(truth) for name in NAMES}
    together = Counter(tuple(getattr(thing, name) for name in NAMES) for thing in truth).most_common(1)[0][1]
    blind = {"clips": clips.name, "of": "most frequent", **guess, "all": together / len(truth), "count": len(truth)}
    return [blind, *rows]


def score_questions(
    lm: PyramidLM, clips: Clips, details: Sequence[int], train: ShapesDataset, each: int = 4, seed: int = 0
) -> list[Row]:
    """`each` questions a clip, drawn by the seed from those that the world asks in many wordings: the share answered
    exactly, of open ones, of those with choices, of yes or no, and of all. The first row: the answer that is most
    frequent for the like of the question among training clips."""
    draw = torch.Generator().manual_seed(seed)
    asked = []
    for place, item in enumerate(clips.items):
        pairs = item["questions"]
        for index in torch.randperm(len(pairs), generator=draw)[:each].tolist():
            asked.append((place, *pairs[index]))
    usual = _usual_answers(train)
    rows = [_shares(clips.name, "most frequent", asked, [usual(question) for _, question, _ in asked])]
    for detail in details:
        begin = time.perf_counter()
        said: list[str] = []
        for start, stop in in_batches(len(asked), 2 * BATCH):
            part = asked[start:stop]
            tokens = clips.tokens[torch.tensor([place for place, _, _ in part])]
            said += [answer.text for answer in lm.ask(tokens, [question for _, question, _ in part], detail)]
        row = _shares(clips.name, "questions", asked, said)
        row |= {"detail": detail, "tokens": clips.tokens.num_tokens(detail)}
        rows.append(row | {"a_second": len(asked) / (time.perf_counter() - begin)})
    return rows


def _shares(name: str, of: str, asked: Sequence[tuple[int, str, str]], said: Sequence[str]) -> Row:
    kinds = defaultdict(list)
    for (_, question, answer), text in zip(asked, said, strict=True):
        kind = "choices" if " or " in question else "yes_no" if answer in ("yes", "no") else "open"
        kinds[kind].append(text == answer)
        kinds["all"].append(text == answer)
    return {"clips": name, "of": of, **{kind: share(values) for kind, values in kinds.items()}, "count": len(asked)}


def _usual_answers(train: ShapesDataset) -> Callable[[str], str]:
    """Question -> the most frequent answer of training clips to the same words, or else to those with the same
    beginning; of choices the first."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for item in train.describe(range(LEARNT)):
        for question, answer in item["questions"]:
            counts[question][answer] += 1
            counts[_beginning(question)][answer] += 1

    def usual(question: str) -> str:
        if " or " in question:
            return question.split(",")[0].split(" or ")[0]
        known = counts.get(question) or counts.get(_beginning(question))
        return known.most_common(1)[0][0] if known else ""

    return usual


def _beginning(question: str) -> str:
    return " ".join(question.split()[:2])
