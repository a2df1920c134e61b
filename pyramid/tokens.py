"""`TokenPyramid`: the code ids of a batch of clips, per chunk and level, as a value that can be cut, flattened, saved.

The written format (safetensors, version 1): tensor `ids` int64 (B, N) in the order chunk, level, then t, h, w within a
level (row-major); metadata: the grids of every chunk, the clip's pixel size and length, and the format version.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyramid.files import replacing
from pyramid.levels import Level, Pyramid, check_detail

FORMAT = "pyramid.tokens"
FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False)
class TokenPyramid:
    """`ids[chunk][level]`: int64 (B, t, h, w). `num_frames`, `height`, `width`: of the pixels that were encoded;
    decoding crops to them. Raises ValueError for ids of another dtype or shape, or chunks that do not go together."""

    ids: tuple[tuple[Tensor, ...], ...]
    num_frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(tuple(levels) for levels in self.ids))
        depths = {len(levels) for levels in self.ids}
        if len(depths) != 1 or 0 in depths:
            raise ValueError(f"TokenPyramid: every chunk must have the same number of levels, got {sorted(depths)}")
        for levels in self.ids:
            for ids in levels:
                if ids.dim() != 4 or ids.dtype != torch.int64:
                    raise ValueError(
                        f"TokenPyramid: ids must be int64 of shape (B, t, h, w), got {ids.dtype} {tuple(ids.shape)}"
                    )
        batch_sizes = {ids.shape[0] for levels in self.ids for ids in levels}
        if len(batch_sizes) != 1:
            raise ValueError(f"TokenPyramid: all ids must have the same batch size, got {sorted(batch_sizes)}")
        if self.num_frames < self.num_chunks or min(self.height, self.width) < 1:
            raise ValueError(
                f"TokenPyramid: expected at least one frame for each of {self.num_chunks} chunks and one pixel a side, "
                f"got {self.num_frames} frames of {self.height}x{self.width}"
            )

    @property
    def num_levels(self) -> int:
        return len(self.ids[0])

    @property
    def num_chunks(self) -> int:
        return len(self.ids)

    @property
    def batch_size(self) -> int:
        return self.ids[0][0].shape[0]

    @property
    def pyramids(self) -> tuple[Pyramid, ...]:
        """The geometry of each chunk."""
        return tuple(Pyramid(tuple(Level(*ids.shape[1:]) for ids in levels)) for levels in self.ids)

    def num_tokens(self, detail: int | None = None) -> int:
        """Tokens of one clip at a detail (all levels by default)."""
        return sum(p.prefix(check_detail(detail, self.num_levels, "num_tokens")).num_tokens for p in self.pyramids)

    def truncate(self, detail: int) -> TokenPyramid:
        """The first `detail` levels of every chunk: what encoding at that detail gives."""
        check_detail(detail, self.num_levels, "TokenPyramid.truncate")
        return TokenPyramid(tuple(levels[:detail] for levels in self.ids), self.num_frames, self.height, self.width)

    def first(self, num_frames: int, num_chunks: int) -> TokenPyramid:
        """The first `num_chunks` chunks, which hold `num_frames` frames."""
        return TokenPyramid(self.ids[:num_chunks], num_frames, self.height, self.width)

    def flatten(self) -> Tensor:
        """Ids int64 (B, N) in the order chunk, level, t, h, w."""
        return torch.cat([ids.flatten(1) for levels in self.ids for ids in levels], dim=1)

    @staticmethod
    def unflatten(
        flat: Tensor, pyramids: Sequence[Pyramid], *, num_frames: int, height: int, width: int
    ) -> TokenPyramid:
        """Inverse of `flatten` for chunks of the given geometry. Raises ValueError if N does not fit it."""
        expected = sum(p.num_tokens for p in pyramids)
        if flat.dim() != 2 or flat.shape[1] != expected:
            raise ValueError(f"TokenPyramid.unflatten: expected ids (B, {expected}), got {tuple(flat.shape)}")
        chunks, start = [], 0
        for pyramid in pyramids:
            levels = []
            for level in pyramid.levels:
                levels.append(flat[:, start : start + level.count].reshape(-1, *level.grid))
                start += level.count
            chunks.append(tuple(levels))
        return TokenPyramid(tuple(chunks), num_frames, height, width)

    def __getitem__(self, rows: slice | Tensor) -> TokenPyramid:
        """Some clips of the batch."""
        picked = tuple(tuple(ids[rows] for ids in levels) for levels in self.ids)
        return TokenPyramid(picked, self.num_frames, self.height, self.width)

    def to(self, device: torch.device | str) -> TokenPyramid:
        moved = tuple(tuple(ids.to(device) for ids in levels) for levels in self.ids)
        return TokenPyramid(moved, self.num_frames, self.height, self.width)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write as safetensors, at once or not at all. Raises FileExistsError unless `overwrite`."""
        path = Path(path)
        if path.exists() and not overwrite:
            raise FileExistsError(f"TokenPyramid.save: {path} exists already")
        metadata = {
            "format": FORMAT,
            "version": str(FORMAT_VERSION),
            "grids": json.dumps([[level.grid for level in p.levels] for p in self.pyramids]),
            "num_frames": str(self.num_frames),
            "height": str(self.height),
            "width": str(self.width),
        }
        with replacing(path) as part:
            save_file({"ids": self.flatten().contiguous().cpu()}, part, metadata=metadata)

    @staticmethod
    def load(path: str | Path) -> TokenPyramid:
        """Read what `save` wrote. Raises FileNotFoundError, or ValueError for another format or version, or ids that do
        not fit the grids."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"TokenPyramid.load: expected a token file, found no file {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata, flat = file.metadata() or {}, file.get_tensor("ids")
        except SafetensorError as error:
            raise ValueError(
                f"TokenPyramid.load: {path}: expected safetensors with a tensor 'ids', got {error}"
            ) from None
        found = (metadata.get("format"), metadata.get("version"))
        if found != (FORMAT, str(FORMAT_VERSION)):
            raise ValueError(f"TokenPyramid.load: {path}: expected {FORMAT} version {FORMAT_VERSION}, got {found}")
        try:
            pyramids = [Pyramid(tuple(Level(*grid) for grid in grids)) for grids in json.loads(metadata["grids"])]
            sizes = {name: int(metadata[name]) for name in ("num_frames", "height", "width")}
            return TokenPyramid.unflatten(flat, pyramids, **sizes)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"TokenPyramid.load: {path}: expected grids and sizes of the ids, got {error!r}") from None


def concatenate_chunks(parts: Sequence[TokenPyramid]) -> TokenPyramid:
    """One clip from consecutive runs of its chunks, e.g. what `encode_stream` yields. Raises ValueError for no part, or
    parts of different size, batch or number of levels."""
    if not parts:
        raise ValueError("concatenate_chunks: expected at least one part, got none")
    sizes = [(part.height, part.width) for part in parts]
    for index, size in enumerate(sizes):
        if size != sizes[0]:
            raise ValueError(f"concatenate_chunks: part {index}: expected height and width {sizes[0]}, got {size}")
    ids = tuple(levels for part in parts for levels in part.ids)
    return TokenPyramid(ids, sum(part.num_frames for part in parts), parts[0].height, parts[0].width)
