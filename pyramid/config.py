"""Configs: a frozen dataclass is the schema and the defaults; YAML files and `a.b=c` overrides say the differences.

    cfg = load(TrainTokenizerConfig, "mini.yaml", overrides=["model.width=64"])

The only file that imports omegaconf; `load` serves pyramid, lm and tasks. OmegaConf merges and checks names and types.
The dataclasses are then built here, not by OmegaConf, for two reasons: tuples of dataclasses and of tuples come out
typed, and an error of a `__post_init__` names the path of the part that raised it.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")


class ConfigError(ValueError):
    """A config that the user can mend; the message is one line and names the full path of the key."""


def load(cls: type[T], *sources: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> T:
    """Merge defaults < sources < overrides into one `cls`.

    Args:
        cls: a dataclass (nested ones, tuples and lists of them are fine).
        sources: paths of YAML files, or mappings; later ones win.
        overrides: `a.b=c` strings, the value in YAML syntax; `a.0.b=c` reaches into a list.

    Raises:
        ConfigError: unknown key, wrong type, or a `__post_init__` that raised ValueError or TypeError.
        FileNotFoundError: a YAML file is missing.
    """
    merged = OmegaConf.structured(cls)
    for source in sources:
        where, content = ("config", source) if isinstance(source, Mapping) else (str(source), _read_yaml(Path(source)))
        try:
            merged = OmegaConf.merge(merged, content)
        except (OmegaConfBaseException, TypeError, ValueError) as error:
            raise ConfigError(f"{where}: {_explain(error, merged)}") from error
    for override in overrides:
        _apply_override(merged, override)
    try:
        plain = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"config: {_explain(error, merged)}") from error
    return _build(cls, plain, "")


def to_yaml(cfg: Any) -> str:
    """The whole of a config dataclass as YAML; `load(type(cfg), path)` reads it back equal."""
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(cfg)))


def to_dict(cfg: Any) -> dict[str, Any]:
    """A config dataclass as plain dicts, lists and scalars, ready for JSON; `load(type(cfg), d)` reads it back."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value

    return plain(cfg)


def flatten(cfg: Any) -> dict[str, Any]:
    """A config dataclass as one dict of scalars, keyed by full path: "run.max_steps", "model.levels.0.bits"."""

    def walk(value: Any, path: str) -> dict[str, Any]:
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        flat: dict[str, Any] = {}
        for key, item in items:
            name = f"{path}{key}"
            flat |= walk(item, f"{name}.") if isinstance(item, (Mapping, list)) else {name: item}
        return flat

    return walk(to_dict(cfg), "")


def _read_yaml(path: Path) -> DictConfig:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a YAML file, found {'a folder' if path.is_dir() else 'nothing'}")
    try:
        content = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: expected YAML, got {' '.join(str(error).split())}") from error
    if not isinstance(content, DictConfig):
        raise ConfigError(f"{path}: expected keys with values, got a list")
    return content


def _apply_override(merged: DictConfig, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r}: expected key=value, such as model.width=64")
    try:
        value = OmegaConf.from_dotlist([f"value={text}"]).value
        _thaw(merged)
        OmegaConf.update(merged, key, value, merge=True)
    except (OmegaConfBaseException, TypeError, ValueError, IndexError, yaml.YAMLError) as error:
        raise ConfigError(f"{override}: {_explain(error, merged)}") from error


def _thaw(node: DictConfig | ListConfig) -> None:
    """Frozen dataclasses make read-only nodes; an override has to write into them."""
    OmegaConf.set_readonly(node, False)
    keys: Any = list(node.keys()) if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        if not OmegaConf.is_missing(node, key) and OmegaConf.is_config(node[key]):
            _thaw(node[key])


def _explain(error: Exception, merged: DictConfig) -> str:
    """One line: the full path of the key, then what is wrong with it."""
    message = " ".join(str(error).split("\n")[0].split())
    full_key = getattr(error, "full_key", None)
    if wrong := re.search(r"(\S+) is not a subclass of (\w+). value: (.*)", message):
        message = f"expected the keys of {wrong[2]}, got {wrong[3]}"
    if "TupleConfig" in message:
        message = "expected an item that is there; a longer list is given whole, as key=[...]"
    if getattr(error, "object_type", None) is not None and "not in" in message and "Did you mean" not in message:
        parent = OmegaConf.select(merged, str(full_key).rpartition(".")[0]) if "." in str(full_key) else merged
        if isinstance(parent, DictConfig):
            message += f"; known keys: {', '.join(str(key) for key in parent)}"
    return f"{full_key}: {message}" if full_key else message


def _build(kind: Any, value: Any, path: str) -> Any:
    """Turn plain containers into what the annotation `kind` says: dataclasses, tuples, lists, dicts."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        chosen = [option for option in args if option is not type(None)]
        return value if value is None or len(chosen) != 1 else _build(chosen[0], value, path)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: expected the keys of {kind.__name__}, got {value!r}")
        return _build_dataclass(kind, value, path)
    if origin is tuple:
        items = list(value)
        fixed = bool(args) and not (len(args) == 2 and args[1] is Ellipsis)
        if fixed and len(items) != len(args):
            raise ConfigError(f"{path}: expected {len(args)} values, got {len(items)}")
        kinds = args if fixed else [args[0] if args else Any] * len(items)
        return tuple(_build(k, item, f"{path}.{i}") for i, (k, item) in enumerate(zip(kinds, items, strict=True)))
    if origin is list:
        return [_build(args[0], item, f"{path}.{i}") for i, item in enumerate(value)]
    if origin is dict:
        return {key: _build(args[1], item, f"{path}.{key}") for key, item in value.items()}
    return _build_scalar(kind, value, path)


def _build_scalar(kind: Any, value: Any, path: str) -> Any:
    """Numbers inside nested containers, which OmegaConf does not check; other scalars were checked by it."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (int, float, str, bool) and (type(value) is not kind):
        raise ConfigError(f"{path}: expected {kind.__name__}, got {value!r}")
    return value


def _build_dataclass(kind: type, value: Mapping[str, Any], path: str) -> Any:
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind) if f.init]
    prefix = f"{path}." if path else ""
    unknown = [key for key in value if key not in names]
    if unknown:  # only inside lists, where OmegaConf does not look
        raise ConfigError(f"{prefix}{unknown[0]}: not a key of {kind.__name__}; known keys: {', '.join(names)}")
    parts = {name: _build(hints[name], value[name], f"{prefix}{name}") for name in names if name in value}
    try:
        return kind(**parts)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path or kind.__name__}: {error}") from error
