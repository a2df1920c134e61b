"""How fast a language model writes: every decoder, at every detail, beside transformers' own `generate`.

`transformers' generate` draws as many tokens, one at a time, from the same backbone with its own attention and its own
small text head: nothing of a pyramid. What is written does not change the time; a clip's decoding to pixels is not in
it.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lm.decoding import Decoding, num_passes
from lm.layout import blocks_of
from pyramid.ops.bench.measure import device_name

if TYPE_CHECKING:
    from lm.model import PyramidLM

WAYS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("next-level", {"decoder": "next-level"}),
    ("masked, 2 passes", {"decoder": "masked", "passes": 2, "first_passes": ()}),
    ("masked, 8 passes", {"decoder": "masked", "passes": 8, "first_passes": ()}),
    ("masked, 8, confidence", {"decoder": "masked", "passes": 8, "first_passes": (), "order": "confidence"}),
    ("the model's own", {}),
    ("raster", {"decoder": "raster"}),
)
RIVAL = "transformers' generate"
PROMPT = "a small red star moves left"


def rows(lm: PyramidLM, batches: Sequence[int] = (1, 8), repeats: int = 3) -> Iterator[dict[str, Any]]:
    """For each batch the rival, then ours, all without guidance: decoder, detail, batch, tokens and passes of a clip,
    ms a clip (median), and `ratio`, how many times as fast as the rival at the same number of tokens."""
    pyramids = lm.tokenizer.pyramids(lm.tokenizer.config.num_frames)
    details = list(range(1, lm.num_levels + 1))
    for batch in batches:
        full = sum(pyramid.num_tokens for pyramid in pyramids)
        rival = _rival(lm, batch, full)
        theirs = _median(rival, repeats if batch == 1 else 1) / batch
        yield _row(RIVAL, lm.num_levels, batch, full, full, theirs, 1.0)
        cases = [(name, way, lm.num_levels) for name, way in WAYS]
        cases += [("the model's own", {}, detail) for detail in details[:-1]]
        for name, way, detail in cases:
            if name == "raster" and batch > 1:
                continue
            settings = {"guidance": 1.0, **way}

            def ours(settings: dict[str, Any] = settings, detail: int = detail, batch: int = batch) -> None:
                lm.generate([PROMPT] * batch, detail, **settings)

            ms = _median(ours, repeats if name != "raster" else 1) / batch
            blocks = blocks_of(pyramids, detail, lm.memory)
            tokens = sum(block.count for block in blocks)
            own: Decoding = lm.decoding("generate")
            passes = num_passes(Decoding(**way) if way else own, blocks)
            yield _row(name, detail, batch, tokens, passes, ms, theirs * tokens / full / ms)


def _row(name: str, detail: int, batch: int, tokens: int, passes: int, ms: float, ratio: float) -> dict[str, Any]:
    values = (name, detail, batch, tokens, passes, ms, 1000 * tokens / ms, ratio)
    names = ("decoder", "detail", "batch", "tokens", "passes", "ms", "tokens_per_s", "ratio")
    return dict(zip(names, values, strict=True))


def _rival(lm: PyramidLM, batch: int, tokens: int) -> Callable[[], None]:
    from transformers.utils import logging

    logging.set_verbosity_error()
    backbone: Any = copy.deepcopy(lm.backbone)
    backbone.set_attn_implementation("sdpa")
    ids = torch.tensor([lm.text_ids(PROMPT)] * batch, device=lm.device)
    settings = {"do_sample": True, "top_p": 0.95, "min_new_tokens": tokens, "max_new_tokens": tokens, "use_cache": True}

    def generate() -> None:
        torch.manual_seed(0)
        mask = torch.ones_like(ids)
        backbone.generate(ids, attention_mask=mask, pad_token_id=0, eos_token_id=None, **settings)

    return generate


def _median(call: Callable[[], None], repeats: int) -> float:
    """Milliseconds, after a first call that is not counted where there are several."""
    times = []
    for _ in range(repeats + (repeats > 1)):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:] or times)


def header(lm: PyramidLM, name: str) -> list[str]:
    millions = sum(parameter.numel() for parameter in lm.parameters()) / 1e6
    return [
        f"# {name}: {millions:.1f} M parameters, {lm.hidden_token.dtype}, {torch.get_num_threads()} threads; "
        f"{device_name(lm.device)}; torch {torch.__version__}",
        "# without guidance, which doubles the rows; ms a clip; ratio to the rival at equally many tokens",
    ]


def line(row: dict[str, Any]) -> str:
    said = f"{row['decoder']:<24} detail {row['detail']} batch {row['batch']:<2} {row['tokens']:>5} tokens "
    return (
        said
        + f"{row['passes']:>5} passes {row['ms']:>9.1f} ms {row['tokens_per_s']:>9.0f} tokens/s {row['ratio']:>7.2f}x"
    )
