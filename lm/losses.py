"""What a `PyramidLM` is trained on, position by position: the hidden codes of blocks, the tokens of a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lm import layout
from lm.conditions import Condition
from lm.layout import Block
from lm.linear_cross_entropy import linear_cross_entropy
from lm.reading import read
from pyramid.tokens import TokenPyramid

if TYPE_CHECKING:
    from lm.model import PyramidLM


def block_nll(
    lm: PyramidLM,
    tokens: TokenPyramid,
    sentences: Sequence[Sequence[int]],
    detail: int,
    condition: Condition,
    inputs: TokenPyramid,
    picked: Callable[[Block], bool],
    hide: Callable[[Block], Tensor],
) -> Iterator[tuple[Block, Tensor, Tensor]]:
    """Each block that is asked for, nats of its tokens (B, n), and which of them were hidden."""
    condition = condition.to(lm.device)
    blocks = layout.blocks_of(tokens.pyramids, detail, lm.memory)
    codes = [inputs.ids[b.chunk][b.level].flatten(1) for b in blocks]
    asked = [i for i, b in enumerate(blocks) if picked(b) and condition.codes(b.chunk, b.level) is None]
    if not asked:
        raise ValueError("PyramidLM.generation_loss: expected a block that is picked and not given, got none")
    # After the last block that is asked for nothing would see a clean copy.
    clean = [i for i in range(asked[-1]) if blocks[i].remembered]
    seen = lm.seen_of(inputs, blocks, codes, condition, {*clean, *asked})
    targets = {i: tokens.ids[blocks[i].chunk][blocks[i].level].flatten(1) for i in asked}
    hidden = {i: hide(blocks[i]).to(lm.device) for i in asked}
    ids, pads = lm.prefix(condition.task, detail, sentences)
    start = ids.shape[1]
    masked_offset = start + sum(blocks[i].count for i in clean)
    x = torch.cat(
        [
            lm.embed_ids(ids),
            *[lm.embed_block(blocks[i], codes[i], seen[i]) for i in clean],
            *[lm.embed_block(blocks[i], targets[i], seen[i], hidden[i]) for i in asked],
        ],
        dim=1,
    )
    intervals = [layout.prefix_intervals(pads, start)]
    if clean:
        intervals.append(layout.clean_intervals([blocks[i] for i in clean], pads, start))
    intervals.append(layout.masked_intervals([blocks[i] for i in asked], pads, start, masked_offset))
    places = [torch.arange(masked_offset), layout.places_of([blocks[i] for i in asked], start)]
    positions = (torch.cat(places).to(lm.device)[None] - pads[:, None]).clamp(min=0)
    out = lm.run(x, torch.cat(intervals, dim=1), positions)[:, masked_offset:]
    for i, part in zip(asked, out.split([blocks[i].count for i in asked], dim=1), strict=True):
        nll = lm.heads[blocks[i].level].nll(part, targets[i], lm.points(blocks[i], seen[i]))
        yield blocks[i], nll, hidden[i]


def hidden_places(
    block: Block, batch_size: int, generator: torch.Generator | None, tube: float, whole: float
) -> Tensor:
    """Which tokens of a block (B, n) are hidden: all of them in a share `whole` of the rows, else a cosine-distributed
    share (MaskGIT, 2202.04200), at least one. In a share `tube` of the rows the same ones in all grids in time."""
    count, frames = block.count, block.grid[0]
    draw = torch.rand(batch_size, 3, generator=generator)
    share = torch.where(draw[:, 0] < whole, torch.ones(batch_size), (draw[:, 1] * torch.pi / 2).cos())
    order = torch.rand(batch_size, count, generator=generator)
    if frames > 1:
        still = order[:, : count // frames].repeat(1, frames)
        order = torch.where((draw[:, 2] < tube)[:, None], still, order)
    number = (share * count).ceil().clamp(min=1).long()
    last = order.sort(dim=1).values.gather(1, number[:, None] - 1)
    return order <= last


def reading_nll(
    lm: PyramidLM,
    tokens: TokenPyramid,
    sentences: Sequence[Sequence[int]],
    detail: int,
    questions: Sequence[Sequence[int]] | None,
    clips: Sequence[int] | None,
) -> Tensor:
    """`PyramidLM.reading_loss`."""
    reading = read(lm, tokens, detail, "caption" if questions is None else "ask")
    limit, end, begins = lm.config.max_text, lm.text.eos_token_id, reading.clip
    said: list[list[int]] = [[] for _ in range(tokens.batch_size)]  # behind each clip, text after text
    own: list[list[int]] = [[] for _ in said]  # where the text of each of these ids begins
    wanted: list[list[int]] = [[] for _ in said]  # what comes after a place, the clip's last one first
    for index, sentence in enumerate(sentences):
        clip = index if clips is None else clips[index]
        question = [] if questions is None else list(questions[index][:limit])
        answer, begin = [*sentence, end][:limit], len(said[clip])
        if begin and not question:
            raise ValueError("PyramidLM.reading_loss: expected a question for each of several texts of a clip")
        wanted[clip] += [-100] * (begin + len(question) - len(wanted[clip])) + answer
        said[clip] += [*question, *answer[:-1]]
        own[clip] += [begin] * (len(said[clip]) - begin)
    ids, own_begin, target = (
        nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], True, nothing).to(lm.device)
        for rows, nothing in ((said, 0), (own, 0), (wanted, -100))
    )
    longest = ids.shape[1]
    text = lm.embed_ids(ids), layout.text_intervals(begins, begins + own_begin, begins, longest)
    parts = zip((reading.x, reading.intervals), text, strict=True)
    x, intervals = (torch.cat(part, dim=1) for part in parts)
    places = begins + torch.arange(longest, device=lm.device) - own_begin
    positions = torch.cat([reading.positions, places], dim=1)
    out = lm.run(x, intervals, positions)[:, begins - 1 :]
    head = lm.backbone.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        return nn.functional.cross_entropy(head(out).float().flatten(0, 1), target.flatten())
    return linear_cross_entropy(out.flatten(0, 1), head.weight, target.flatten())
