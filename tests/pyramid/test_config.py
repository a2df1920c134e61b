from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from pyramid.config import ConfigError, load, to_dict, to_yaml


@dataclass(frozen=True)
class Level:
    grid: tuple[int, int, int] = (1, 2, 2)
    kind: Literal["words", "bits"] = "bits"


@dataclass(frozen=True)
class Model:
    width: int = 32
    rate: float = 0.5
    name: str | None = None
    levels: tuple[Level, ...] = (Level(), Level(grid=(1, 4, 4)))

    def __post_init__(self) -> None:
        if self.width <= 0:
            raise ValueError(f"width: expected > 0, got {self.width}")


@dataclass(frozen=True)
class Config:
    model: Model = field(default_factory=Model)
    steps: int = 10
    sizes: list[int] = field(default_factory=lambda: [32])


def test_defaults_files_and_overrides_merge_in_that_order(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("steps: 1\nmodel: {width: 8, rate: 1}\n")
    second.write_text("steps: 2\n")
    cfg = load(Config, first, second, overrides=["model.name=x", "sizes=[1, 2]", "model.rate=1e-4"])
    assert cfg == Config(model=Model(width=8, rate=1e-4, name="x"), steps=2, sizes=[1, 2])
    assert load(Config) == Config()
    assert load(Config, {"steps": 3}).steps == 3


def test_containers_come_out_typed_and_hashable():
    cfg = load(Config, {"model": {"levels": [{"grid": [1, 8, 8], "kind": "words"}]}})
    assert cfg.model.levels == (Level(grid=(1, 8, 8), kind="words"),)
    assert hash(cfg.model) == hash(Model(levels=(Level(grid=(1, 8, 8), kind="words"),)))


def test_yaml_and_dict_round_trip(tmp_path):
    cfg = load(Config, overrides=["model.width=7", "model.levels=[{grid: [3, 1, 1]}]"])
    path = tmp_path / "c.yaml"
    path.write_text(to_yaml(cfg))
    assert load(Config, path) == cfg
    assert load(Config, to_dict(cfg)) == cfg


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.widht=3", r"model\.widht: .*[Dd]id you mean.*width"),
        ("zz=3", r"zz: .*known keys: model, steps, sizes"),
        ("model.width=abc", r"model\.width: .*'abc'.*could not be converted to Integer"),
        ("model.width=2.5", r"model\.width: "),
        ("model.width=-1", r"^model: width: expected > 0, got -1"),
        ("model.levels=[{grid: [1, 2]}]", r"model\.levels\.0\.grid: expected 3 values, got 2"),
        ("model.levels=[{grid: [1, 2, x]}]", r"model\.levels\.0\.grid\.2: expected int, got 'x'"),
        ("model.levels=[{gird: [1, 2, 3]}]", r"model\.levels\.0\.gird"),
        ("model=3", r"model"),
        ("steps", r"expected key=value"),
        ("=3", r"expected key=value"),
        ("sizes=[a]", r"sizes"),
        ("sizes={", r"sizes"),
        ("model.levels=3", r"model\.levels"),
    ],
)
def test_what_the_user_can_mend_is_one_line_with_the_full_path(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(Config, overrides=[override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("steps: [", "expected YAML"), ("- 1\n", "a list"), ("stesp: 1", "steps")]
)
def test_a_bad_file_is_named(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load(Config, path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.yaml"):
        load(Config, tmp_path / "none.yaml")
