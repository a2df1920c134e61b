"""Any language model reads the pyramid as words (SPAE, 2306.17842): prompts of examples, and what its replies say.

The words of a clip are written coarse to fine, a line a level, so that a prompt may end at any of them (progressive,
section 3.3 of the paper). `Example`s come before the clip that is asked about:

    Each clip is described by words, layer by layer, coarse to fine.

    clip: layer 1: ring | layer 2: red large left gradient
    label: ring

    clip: layer 1: star | layer 2: ...
    label:

Nothing here knows of a model: `tasks/incontext.py` sends prompts, these functions make and read them. No reply raises.
"""

from __future__ import annotations

import difflib
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pyramid.words import WordTable

INTRODUCTION = "Each clip is described by words, layer by layer, coarse to fine."
Words = Sequence[Sequence[str]]  # of a clip: its word levels, coarse to fine, the words in scan order


@dataclass(frozen=True)
class Example:
    """A clip's words and what is to be said of it: a label or a caption."""

    words: Words
    answer: str


@dataclass(frozen=True)
class Reply:
    """What a reply says. `answer`: a label or a caption, empty where the reply says nothing that fits; `exact`:
    whether it is so said, or the nearest to it."""

    answer: str
    exact: bool


def clip_words(chunks: Sequence[Words]) -> list[list[str]]:
    """Words by chunk and level, as `PyramidTokenizer.words` gives of a clip, by level: the chunks one after the
    other."""
    levels = max(map(len, chunks), default=0)
    return [[word for chunk in chunks for word in chunk[level]] for level in range(levels)]


def written(words: Words, detail: int | None = None) -> str:
    """`layer 1: ring | layer 2: red large left gradient`, the first `detail` levels, without repetition in a level."""
    return " | ".join(
        f"layer {number}: {' '.join(dict.fromkeys(level))}" for number, level in enumerate(words[:detail], start=1)
    )


def answer_prompt(
    examples: Sequence[Example],
    words: Words,
    *,
    what: str = "label",
    labels: Sequence[str] = (),
    instruction: str = "",
    detail: int | None = None,
) -> str:
    """A prompt whose continuation is the label or the caption (`what`) of a clip; `labels`: the ones to choose from;
    `instruction`: what is asked, a sentence of its own."""
    if instruction:
        asked = instruction
    elif labels:
        asked = f"Say which {what} the last clip has: {', '.join(labels)}."
    else:
        asked = f"Say the {what} of the last clip."
    shots = [f"clip: {written(example.words, detail)}\n{what}: {example.answer}" for example in examples]
    last = f"clip: {written(words, detail)}\n{what}:"
    return "\n\n".join([f"{INTRODUCTION} {asked}", *shots, last])


def words_prompt(
    examples: Sequence[Example],
    caption: str,
    level: int,
    counts: Sequence[int],
    given: Words = (),
) -> str:
    """A prompt whose continuation is level `level` (from 0) of the words of a clip of `caption`, after the levels that
    are `given`: progressive decoding, a level at a time. `counts`: words of each level."""
    asked = f"Write the {counts[level]} words of layer {level + 1} for the last caption, separated by spaces."
    parts = [f"{INTRODUCTION} {asked}"]
    for example in examples:
        lines = [f"layer {number}: {' '.join(example.words[number - 1])}" for number in range(1, level + 2)]
        parts.append("\n".join([f"caption: {example.answer}", *lines]))
    lines = [f"layer {number}: {' '.join(words)}" for number, words in enumerate(given[:level], start=1)]
    parts.append("\n".join([f"caption: {caption}", *lines, f"layer {level + 1}:"]))
    return "\n\n".join(parts)


def denoising_prompt(clips: Sequence[Words], words: Words, level: int, table: WordTable, seed: int = 0) -> str:
    """A prompt whose continuation is level `level` of a clip, mended: the examples are the levels of other clips with
    fewer and fewer words replaced by others of the table (half of them in the first, none after the last), and what
    they were; then `words`, as far as they are known (in-context denoising, section 3.3)."""
    draw = random.Random(seed)
    parts = [f"{INTRODUCTION} Layer {level + 1} is disturbed; write it as it was."]
    for number, clip in enumerate([*clips, None]):
        shown = words if clip is None else clip
        rate = 0.5 * (1 - number / max(1, len(clips)))
        noisy = [draw.choice(table.words) if clip and draw.random() < rate else word for word in shown[level]]
        coarse = f"{written(shown, level)} | " if level else ""
        mended = "" if clip is None else f" {' '.join(clip[level])}"
        parts.append(f"clip: {coarse}layer {level + 1}: {' '.join(noisy)}\nmended:{mended}")
    return "\n\n".join(parts)


# ---------------------------------------------------------------------------------------------- replies


def read_label(reply: str, labels: Sequence[str]) -> Reply:
    """Which of the labels a reply says: the one that its first line is, else the one that stands first in it, else the
    one that is spelled most alike. Case and signs between words count where labels differ in them alone (C, C++)."""
    line = first_line(reply)
    for known in (str, str.casefold):
        if line and (same := [label for label in labels if known(label) == known(line)]):
            return Reply(same[0], True)
    times = Counter(map(_folded, labels))
    folded = {key: label for label in labels if (key := _folded(label)) and times[key] == 1}
    if _folded(line) in folded:
        return Reply(folded[_folded(line)], True)
    words = [rf"(?<!\w){re.escape(label)}(?!\w)" if label else r"(?!)" for label in labels]
    stands = [re.search(word, reply, re.IGNORECASE) for word in words]
    found = [(match.start(), -len(label), label) for match, label in zip(stands, labels, strict=True) if match]
    if not found:
        text = f" {_folded(reply)} "
        found = [(place, -len(key), label) for key, label in folded.items() if (place := text.find(f" {key} ")) >= 0]
    if found:
        return Reply(min(found)[2], True)
    alike = difflib.get_close_matches(_folded(line), list(folded), n=1, cutoff=0.75)
    return Reply(folded[alike[0]], False) if alike else Reply("", False)


def read_caption(reply: str) -> Reply:
    """The first line that says something."""
    line = first_line(reply)
    return Reply(line, bool(line))


def read_words(reply: str, table: WordTable, count: int) -> tuple[list[str], int]:
    """`count` words of the table from a reply, and how many of them it said so: a word that the table does not know
    becomes the one spelled most alike, or is passed over; what is missing repeats the last word."""
    known = set(table.words)
    said: list[str] = []
    exact = 0
    for word in re.findall(r"[^\W_]+", first_line(reply).lower()):
        if len(said) == count:
            break
        if word in known:
            exact += 1
            said.append(word)
        elif alike := difflib.get_close_matches(word, table.words, n=1, cutoff=0.8):
            said.append(alike[0])
    filler = said[-1] if said else table.words[0]
    return said + [filler] * (count - len(said)), exact


def first_line(reply: str) -> str:
    """The first line with something in it, without a leading `label:` and quotes."""
    for line in reply.splitlines():
        text = re.sub(r"^\s*(label|caption|answer|mended|layer \d+)\s*:", "", line, flags=re.IGNORECASE).strip()
        text = text.strip("\"'`*. ")
        if text:
            return text
    return ""


def _folded(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.lower()))
