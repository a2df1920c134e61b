"""A language model as a folder: config.json, model.safetensors (all but the backbone), backbone/ (transformers' own
format, with the text tokenizer; with LoRA peft's)."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from lm.backbone import LMConfig, load_adapters, load_backbone, save_adapters
from pyramid.config import load
from pyramid.tokenizer import PyramidTokenizer, load_weights, model_folder

if TYPE_CHECKING:
    from lm.model import PyramidLM

FORMAT_VERSION = 1


def write_folder(lm: PyramidLM, folder: Path, tokenizer: str, dtype: torch.dtype) -> None:
    """`PyramidLM.save_pretrained`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {n: t.to(dtype).contiguous() for n, t in lm.state_dict().items() if not n.startswith("backbone.")}
    config = {"format": "pyramid.lm", "format_version": FORMAT_VERSION, "tokenizer": tokenizer}
    config |= dataclasses.asdict(lm.config)
    with TemporaryDirectory(prefix=".partial-", dir=folder) as name:
        part = Path(name)
        if lm.config.lora:
            save_adapters(lm.backbone, part / "backbone")
        else:
            state = {n: t.to(dtype) for n, t in lm.backbone.state_dict().items()}
            lm.backbone.save_pretrained(part / "backbone", state_dict=state)
        lm.text.save_pretrained(part / "backbone")
        metadata = {"format": "pt", "version": str(FORMAT_VERSION)}
        save_file(weights, part / "model.safetensors", metadata=metadata)
        (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf8")
        files = [path.relative_to(part) for path in part.rglob("*") if path.is_file()]
        for file in sorted(files, key=Path("config.json").__eq__):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(part / file, folder / file)


def read_folder(
    kind: type[PyramidLM], model: str | Path, tokenizer: PyramidTokenizer | None, device: torch.device | str
) -> PyramidLM:
    """`PyramidLM.from_pretrained`."""
    folder = model_folder(model)
    named, config = _read_config(folder / "config.json")
    if tokenizer is None:
        beside = folder / named
        tokenizer = PyramidTokenizer.from_pretrained(beside if beside.is_dir() else named, device=device)
    text = AutoTokenizer.from_pretrained(folder / "backbone")
    if config.lora:
        assert config.backbone is not None  # the config is checked for it
        backbone = load_adapters(load_backbone(config.backbone), folder / "backbone")
    else:
        backbone = load_backbone(folder / "backbone")
    lm = kind(config, tokenizer, text, backbone)
    weights = {f"backbone.{name}": tensor for name, tensor in lm.backbone.state_dict().items()}
    load_weights(lm, weights | load_file(folder / "model.safetensors"), f"PyramidLM: {folder}")
    return lm.to(device).eval()


def _read_config(path: Path) -> tuple[str, LMConfig]:
    """What `save_pretrained` wrote: the name of the video tokenizer, and the config."""
    try:
        config = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise ValueError(f"PyramidLM: {path}: expected JSON, got {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"PyramidLM: {path}: expected an object, got {type(config).__name__}")
    found = (config.pop("format", None), config.pop("format_version", None))
    if found != ("pyramid.lm", FORMAT_VERSION):
        raise ValueError(f"PyramidLM: {path}: expected a pyramid.lm, version {FORMAT_VERSION}, got {found}")
    expected = {"tokenizer", *(field.name for field in dataclasses.fields(LMConfig))}
    missing, unknown = sorted(expected - config.keys() - _LATER_KEYS.keys()), sorted(config.keys() - expected)
    if missing or unknown:
        raise ValueError(f"PyramidLM: {path}: expected the keys of an LMConfig, got {missing=}, {unknown=}")
    tokenizer = config.pop("tokenizer")
    return tokenizer, load(LMConfig, _LATER_KEYS | config)


# What the first models of this format version, written without these keys, have.
_LATER_KEYS: dict[str, Any] = {
    "tasks": ["generate", "caption"],
    "memory": None,
    "history": 1,
    "copies": False,
    "lora": 0,
    "decoding": {},
    "familiar": None,
}
