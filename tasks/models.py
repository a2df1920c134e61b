"""Which model a verb uses: the one that `--model` names, a shipped one, a folder or a hub id; or the default.

A model folder holds `tokenizer/` and `lm/` (and `mini`, which ships, `judge/`), or is the folder of one of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm.model import PyramidLM
    from pyramid.tokenizer import PyramidTokenizer, TokenizerConfig
    from tasks.judge import Judge

SHIPPED = Path(__file__).parent / "shipped"
JUDGES = SHIPPED / "judges"  # networks that look at clips and are no models: `judge_folder`
# The shipped model that a verb takes without --model: where a tokenizer is enough, where it needs more, and where a
# model that knows all tasks ("edit", "storyboard", "ask", "classify").
DEFAULTS = {"tokenizer": "shapes", "lm": "mini", "judge": "mini", "tasks": "shapes"}


def shipped_names() -> list[str]:
    """Of the models that this install has."""
    folders = (folder for folder in SHIPPED.glob("*") if folder != JUDGES)
    return sorted(folder.name for folder in folders if any(folder.rglob("config.json")))


def shipped(name: str) -> Path:
    """The folder of a shipped model. Raises FileNotFoundError where this install does not have it."""
    if name not in shipped_names():
        found = ", ".join(shipped_names()) or "none"
        raise FileNotFoundError(f"{SHIPPED}: expected the shipped model {name}, found {found}; name one with --model")
    return SHIPPED / name


def judge_folder(name: str) -> Path:
    """The folder of a shipped judge: "shapes_judge" (`SceneJudge`), "handwriting_judge" (`WritingJudge`) or
    "robot_features" (`ClipFeatures`). Raises FileNotFoundError where this install does not have it."""
    if not (JUDGES / name / "config.json").is_file():
        found = ", ".join(sorted(path.parent.name for path in JUDGES.glob("*/config.json"))) or "none"
        raise FileNotFoundError(f"{JUDGES}: expected the shipped judge {name}, found {found}")
    return JUDGES / name


def part_of(model: str | None, part: str) -> Path:
    """The folder of one part ("tokenizer", "lm") of a model; a shipped model's name goes before a folder's (`./shapes`
    is a folder). Raises FileNotFoundError with what was expected."""
    root = shipped(DEFAULTS[part]) if model is None else SHIPPED / model if model in shipped_names() else Path(model)
    if model is not None and not root.exists():
        from huggingface_hub.errors import HFValidationError

        from pyramid.tokenizer import model_folder

        try:
            root = model_folder(model)  # a hub id
        except HFValidationError:
            known = ", ".join([*shipped_names(), "a folder"])
            raise FileNotFoundError(f"model {model}: expected {known} or a hub id, found no folder") from None
    if (root / part / "config.json").is_file():
        return root / part
    others = [name for name in ("tokenizer", "lm", "judge") if name != part and (root / name / "config.json").is_file()]
    if (root / "config.json").is_file() and not others:
        return root
    found = f"only {others[0]}/" if others else "neither config.json nor tokenizer/"
    raise FileNotFoundError(f"{root}: expected a model folder with {part}/config.json, found {found}")


def codebook_sizes(tokenizer: PyramidTokenizer) -> list[int]:
    """How many codes each level has."""
    levels: Any = tokenizer.levels.levels
    return [level.quantizer.codebook_size for level in levels]


def fingerprint(module: Any, more: str = "") -> str:
    """16 hexadecimal digits over every weight, the word table where there is one, and `more`."""
    digest = hashlib.sha256(more.encode())
    for name, weight in sorted(module.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.numpy(force=True).tobytes())
    if getattr(module, "table", None) is not None:
        digest.update(module.table.hash.encode())
    return digest.hexdigest()[:16]


def load_tokenizer(model: str | None = None, device: str = "cpu") -> PyramidTokenizer:
    from pyramid.tokenizer import PyramidTokenizer

    folder = part_of(model, "tokenizer")
    with _damage_named(folder):
        return PyramidTokenizer.from_pretrained(folder, device=device)


def load_lm(model: str | None = None, device: str = "cpu", dtype: str = "float32") -> PyramidLM:
    """`dtype`: of the weights, and of those of its tokenizer; float32 or bfloat16."""
    import torch
    from transformers.utils import logging

    from lm.model import PyramidLM

    logging.disable_progress_bar()  # its bar for loading a backbone is not for piped output
    folder = part_of(model, "lm")
    with _damage_named(folder):
        lm = PyramidLM.from_pretrained(folder, device=device).to(getattr(torch, dtype))
    lm.tokenizer.to(getattr(torch, dtype))
    return lm


def load_judge(model: str | None, clips: TokenizerConfig) -> Judge:
    """The judge beside a model's `lm/`, else the shipped one. Raises ValueError unless it judges clips of this size."""
    from tasks.judge import Judge

    own = part_of(model, "lm").with_name("judge")
    folder = own if (own / "config.json").is_file() else part_of(None, "judge")
    with _damage_named(folder):
        judge = Judge.load(folder)
    made = f"{clips.num_frames} frames of {clips.height}x{clips.width}"
    judged = f"{judge.num_frames} frames of {judge.size}x{judge.size}"
    if made != judged:
        raise ValueError(f"{folder}: expected a judge of {made}, which the model makes, got one of {judged}")
    return judge


@contextlib.contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    """Turn what libraries raise over a damaged or foreign folder into one ValueError that names it."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{folder}: expected a model that this version can read, got {type(error).__name__}: {reason}"
        ) from error
