"""Text from a pyramid: what a caption is read from, and the words one after the other. Writing is decoding.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lm import layout
from lm.conditions import Condition
from lm.kv_cache import roomy_cache
from pyramid.tokens import TokenPyramid

if TYPE_CHECKING:
    from lm.model import PyramidLM


def read(lm: PyramidLM, tokens: TokenPyramid, detail: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, intervals and positions of [task] [detail] [blocks], after which text follows."""
    blocks = layout.blocks_of(tokens.pyramids, detail)
    codes = [tokens.ids[b.chunk][b.level].flatten(1) for b in blocks]
    seen = lm.seen_of(tokens, blocks, codes, Condition("caption"), range(len(blocks)))
    ids, pads = lm.prefix("caption", detail, [[]] * tokens.batch_size)
    embedded = [lm.embed_block(b, codes[i], seen[i]) for i, b in enumerate(blocks)]
    x = torch.cat([lm.embed_ids(ids), *embedded], dim=1)
    start = ids.shape[1]
    intervals = [layout.prefix_intervals(pads, start), layout.clean_intervals(blocks, pads, start)]
    positions = torch.arange(x.shape[1], device=lm.device).expand(tokens.batch_size, -1)
    return x, torch.cat(intervals, dim=1), positions


def captions(lm: PyramidLM, tokens: TokenPyramid, detail: int) -> list[str]:
    """One sentence a clip, the most likely word at each step."""
    x, intervals, positions = read(lm, tokens, detail)
    cache, run, head = roomy_cache(), lm.runner(), lm.backbone.get_output_embeddings()
    batch, end = tokens.batch_size, lm.text.eos_token_id
    done = torch.zeros(batch, dtype=torch.bool, device=lm.device)
    written: list[Tensor] = []
    for _step in range(lm.config.max_text):
        ids = head(run(x, intervals, positions, cache, None)[:, -1]).argmax(dim=-1).masked_fill(done, end)
        done |= ids == end
        if done.all():
            break
        written.append(ids)
        start = cache.get_seq_length()
        x = lm.embed_ids(ids[:, None])
        intervals = layout.text_intervals(start, 1, batch, lm.device)
        positions = torch.full((batch, 1), start, device=lm.device)
    rows = torch.stack(written, dim=1).tolist() if written else [[]] * batch
    return [lm.text.decode(row, skip_special_tokens=True).strip() for row in rows]
