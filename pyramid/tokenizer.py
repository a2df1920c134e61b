"""`PyramidTokenizer`: video <-> pyramid of tokens. Read this file first; it only composes the parts.

    video -> Encoder -> latent -> PyramidQuantizer -> TokenPyramid -> PyramidQuantizer -> latent -> Decoder -> video

Inference always runs one chunk at a time (the first frame, then runs of `chunk_frames`), with the state of the causal
networks as a value that the caller of `encode_chunk` and `decode_chunk` holds: a stream and a whole clip are the same
computation, and memory does not grow with the clip. Training runs a clip at once (`forward`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pyramid.config import load
from pyramid.files import replacing
from pyramid.folders import load_weights, model_folder
from pyramid.levels import Level, Pyramid, check_detail, chunk_lengths, in_order
from pyramid.nn.blocks import State
from pyramid.nn.decoder import Decoder
from pyramid.nn.encoder import Encoder
from pyramid.nn.reader import WordReader
from pyramid.quantize import COMBINATIONS, LevelConfig, QuantizedChunk
from pyramid.tokenizer_config import TokenizerConfig
from pyramid.tokens import TokenPyramid, concatenate_chunks
from pyramid.words import WordTable

FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False)
class TrainingOutput:
    """What training needs of one pass: `video` (B, 3, T, H, W), the reconstruction at each clip's own detail;
    `chunks`: the quantized chunks, first frame first."""

    video: Tensor
    chunks: list[QuantizedChunk]


class PyramidTokenizer(nn.Module):
    """Video tokenizer. `table`: the word table of the word levels; the package's own by default.

    >>> tokenizer = PyramidTokenizer(TokenizerConfig())
    >>> tokens = tokenizer.encode(torch.zeros(1, 3, 9, 32, 32))
    >>> tokenizer.decode(tokens, detail=3).shape
    torch.Size([1, 3, 9, 32, 32])
    """

    def __init__(self, config: TokenizerConfig, table: WordTable | None = None) -> None:
        super().__init__()
        self.config = c = config
        if table is None and any(level.codebook == "words" for level in c.levels):
            table = WordTable.load()
        self.table = table
        self.encoder = Encoder(c)
        reference, stack = self.latent_grid(c.height, c.width), COMBINATIONS[c.combination]
        self.reader = None
        if table is not None and self.word_levels and c.reader_depth:
            words = [Level(c.levels[index].t, c.levels[index].h, c.levels[index].w) for index in self.word_levels]
            self.reader = WordReader(words, reference, c.dim, table.embeddings.shape[1], c.reader_depth)
        self.levels = stack(c.levels, c.latent_dim, reference, table, words_are_read=self.reader is not None)
        self.decoder = Decoder(c)

    @property
    def num_levels(self) -> int:
        return self.config.num_levels

    @property
    def word_levels(self) -> list[int]:
        """Indices (from 0) of the levels whose codes are words."""
        return [index for index, level in enumerate(self.config.levels) if level.codebook == "words"]

    @property
    def device(self) -> torch.device:
        return self.encoder.head[1].weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights: video is cast to it, decoded video comes in it."""
        return self.encoder.head[1].weight.dtype

    def pyramids(self, num_frames: int, height: int | None = None, width: int | None = None) -> list[Pyramid]:
        """Geometry of every chunk of a clip of this length and pixel size (by default the training size). Raises
        ValueError unless all are at least 1."""
        c = self.config
        height, width = c.height if height is None else height, c.width if width is None else width
        num_chunks = len(chunk_lengths(num_frames, c.chunk_frames))
        return [self.levels.pyramid(self.latent_grid(height, width, first=i == 0)) for i in range(num_chunks)]

    def latent_grid(self, height: int, width: int, *, first: bool = False) -> tuple[int, int, int]:
        """(t, h, w) of the latent of a chunk: of the first one, or of any other."""
        c = self.config
        if height < 1 or width < 1:
            raise ValueError(f"PyramidTokenizer: height and width must be at least 1, got {height} and {width}")
        return (1 if first else c.chunk_frames // c.time_stride, -(-height // c.stride), -(-width // c.stride))

    # ------------------------------------------------------------------------------------------ training

    def forward(self, video: Tensor, detail: Tensor) -> TrainingOutput:
        """One pass over whole clips, for training. video (B, 3, T, H, W) with T = 1 + n * chunk_frames, H and W
        multiples of the stride; detail (B,) int64: the levels each clip's reconstruction may use, or num_levels + 1
        for the latent as it is, unquantized."""
        video, detail = video.to(self.device, self.dtype), detail.to(self.device)
        latent, features, _ = self.encoder(video)
        step = self.config.chunk_frames // self.config.time_stride
        lengths = chunk_lengths(latent.shape[2], step)
        parts = zip(latent.split(lengths, dim=2), features.split(lengths, dim=1), strict=True)
        chunks = [self._quantize(*part) for part in parts]
        kept = []
        for chunk in chunks:
            choices = torch.stack([*chunk.prefixes, chunk.latent.to(chunk.prefixes[0].dtype)])
            kept.append(choices[detail - 1, torch.arange(len(detail), device=detail.device)])
        pixels, _ = self.decoder(torch.cat(kept, dim=2), detail)
        return TrainingOutput(pixels, chunks)

    def read_words(self, video: Tensor) -> list[list[Tensor]]:
        """For training: what the word levels of each chunk are read to be before they are words, points (B, t, h, w, E)
        of the table's space; video as `forward`. Raises ValueError for a tokenizer without a reader."""
        if self.reader is None:
            raise ValueError("PyramidTokenizer.read_words: expected levels of words and a reader_depth of at least 1")
        features = self.encoder(video.to(self.device, self.dtype)).features
        step = self.config.chunk_frames // self.config.time_stride
        return [self._read(part) for part in features.split(chunk_lengths(features.shape[1], step), dim=1)]

    def _read(self, features: Tensor) -> list[Tensor]:
        """The points of the words of one chunk, read off its features (B, t, h, w, C); none without a reader."""
        if self.reader is None:
            return []
        levels = self.levels.pyramid(features.shape[1:4]).levels
        return self.reader(features, [levels[index].grid for index in self.word_levels])

    # ------------------------------------------------------------------------------------------ inference

    @torch.no_grad()
    def encode_chunk(
        self, video: Tensor, state: State | None, detail: int | None = None, *, tile: int | None = None
    ) -> tuple[tuple[Tensor, ...], State]:
        """One chunk of pixel frames (B, 3, t, H, W) in [-1, 1] -> ids of its levels, and the state for the next chunk.
        t is 1 for the first chunk (state None), then `chunk_frames`; a shorter last chunk is filled up with its last
        frame, sides that the stride does not divide with their last row and column. Streams with a state each may share
        a pass, whatever their lengths: `stack_states`, `split_state`. `tile`, ValueError: as `encode`."""
        chunk, state = self.quantize_chunk(video, state, detail, tile=tile)
        return tuple(chunk.ids), state

    @torch.no_grad()
    def quantize_chunk(
        self, video: Tensor, state: State | None, detail: int | None = None, *, tile: int | None = None
    ) -> tuple[QuantizedChunk, State]:
        """As `encode_chunk`, with all that is known of the chunk: what each level was asked for beside its ids."""
        c = self.config
        _check_video(video)
        detail = check_detail(detail, self.num_levels, "PyramidTokenizer.encode")
        wanted = 1 if state is None else c.chunk_frames
        missing = (-video.shape[4] % c.stride, -video.shape[3] % c.stride, wanted - video.shape[2])
        if missing[2] < 0:
            raise ValueError(f"PyramidTokenizer.encode_chunk: expected at most {wanted} frames, got {video.shape[2]}")
        video = video.to(self.device, self.dtype)
        video = nn.functional.pad(video, (0, missing[0], 0, missing[1], 0, missing[2]), mode="replicate")
        latent, features, state = self.encoder(video, state, tile=self._tile(tile))
        return self._quantize(latent, features, detail), state

    def _quantize(self, latent: Tensor, features: Tensor, detail: int | None = None) -> QuantizedChunk:
        """One chunk through the levels, its words read off its features."""
        return self.levels(latent, detail, self._read(features))

    @torch.no_grad()
    def decode_chunk(
        self, ids: tuple[Tensor, ...], state: State | None, *, height: int, width: int, tile: int | None = None
    ) -> tuple[Tensor, State]:
        """Ids of the first k levels of one chunk -> pixel frames (B, 3, t, height, width) in [-1, 1], new state.
        `tile`: as `encode`. Raises ValueError for ids that this tokenizer does not give for this chunk: number of
        levels, dtype, shape or range."""
        grid = self.latent_grid(height, width, first=state is None)
        latent = self.levels.decode([i.to(self.device) for i in ids], grid)
        detail = torch.full((latent.shape[0],), len(ids), device=latent.device)
        pixels, state = self.decoder(latent, detail, state, tile=self._tile(tile))
        return pixels[..., :height, :width].clamp(-1, 1), state

    def encode(self, video: Tensor, detail: int | None = None, *, tile: int | None = None) -> TokenPyramid:
        """Tokens of whole clips. video (B, 3, T, H, W), any float dtype, in [-1, 1], any T, H, W >= 1. `tile`: work on
        frames in tiles of so many pixels a side, where memory is short; the same to rounding.

        Raises ValueError for another shape, values outside [-1, 1], a detail that the pyramid does not have or a tile
        smaller than the stride.
        """
        num_frames = _video_shape(video)[1]
        chunks = video.split(chunk_lengths(num_frames, self.config.chunk_frames), dim=2)
        return concatenate_chunks(list(self.encode_stream(chunks, detail, tile=tile)))

    def decode(self, tokens: TokenPyramid, detail: int | None = None, *, tile: int | None = None) -> Tensor:
        """Video (B, 3, T, H, W) in [-1, 1] of the first `detail` levels (by default all that the tokens have). `tile`:
        as `encode`.

        Raises ValueError for a detail or a tile as `encode`, and for tokens that this tokenizer does not give for
        a clip of their size: chunks, levels, grids or ids.
        """
        detail = check_detail(detail, tokens.num_levels, "PyramidTokenizer.decode")
        lengths = chunk_lengths(tokens.num_frames, self.config.chunk_frames)
        if len(lengths) != tokens.num_chunks:
            expected = f"{len(lengths)} chunks for {tokens.num_frames} frames"
            raise ValueError(f"PyramidTokenizer.decode: expected {expected}, got {tokens.num_chunks}")
        parts = (
            TokenPyramid((ids,), length, tokens.height, tokens.width)
            for ids, length in zip(tokens.ids, lengths, strict=True)
        )
        return torch.cat(list(self.decode_stream(parts, detail, tile=tile)), dim=2)

    def encode_stream(
        self, chunks: Iterable[Tensor], detail: int | None = None, *, tile: int | None = None
    ) -> Iterator[TokenPyramid]:
        """Tokens chunk by chunk, in constant memory. `chunks`: (B, 3, t, H, W) each, t = 1 for the first, then
        `chunk_frames`; the last may be shorter. Raises ValueError as `encode`, and for a chunk that does not continue
        those before it."""
        state: State | None = None
        for chunk in in_order(chunks, _video_shape, self.config.chunk_frames, "PyramidTokenizer.encode_stream"):
            ids, state = self.encode_chunk(chunk, state, detail, tile=tile)
            yield TokenPyramid((ids,), chunk.shape[2], chunk.shape[3], chunk.shape[4])

    def decode_stream(
        self, parts: Iterable[TokenPyramid], detail: int | None = None, *, tile: int | None = None
    ) -> Iterator[Tensor]:
        """Video (B, 3, t, H, W) for every single-chunk part, in order; the inverse of `encode_stream`. Raises
        ValueError as `decode`, and for a part that does not continue those before it."""
        state: State | None = None
        for part in in_order(parts, _part_shape, self.config.chunk_frames, "PyramidTokenizer.decode_stream"):
            if part.num_chunks != 1 or part.num_levels > self.num_levels:
                raise ValueError(
                    f"PyramidTokenizer.decode_stream: expected one chunk of at most {self.num_levels} levels, got "
                    f"{part.num_chunks} of {part.num_levels}"
                )
            ids = part.ids[0][: check_detail(detail, part.num_levels, "PyramidTokenizer.decode")]
            pixels, state = self.decode_chunk(ids, state, height=part.height, width=part.width, tile=tile)
            yield pixels[:, :, : part.num_frames]

    def _tile(self, tile: int | None) -> int | None:
        if tile is not None and tile < self.config.stride:
            raise ValueError(
                f"PyramidTokenizer: tile must be at least the stride of {self.config.stride} pixels, got {tile}"
            )
        return tile

    def words(self, tokens: TokenPyramid) -> list[list[list[list[str]]]]:
        """The tokens of the word levels as words: [clip][chunk][word level] -> words in scan order."""
        if self.table is None:
            return [[[] for _ in tokens.ids] for _ in range(tokens.batch_size)]
        levels = [index for index in self.word_levels if index < tokens.num_levels]
        return [
            [[self.table.ids_to_words(ids[index][row].flatten().tolist()) for index in levels] for ids in tokens.ids]
            for row in range(tokens.batch_size)
        ]

    # ------------------------------------------------------------------------------------------ folders

    def save_pretrained(self, folder: str | Path, *, half: bool = False) -> None:
        """Write `config.json`, `model.safetensors` and, with word levels, `words.safetensors`; each file at once or not
        at all, the config last. `half`: store float16; the loaded model computes in float32 either way, on the rounded
        weights."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"format": "pyramid.tokenizer", "format_version": FORMAT_VERSION, **dataclasses.asdict(self.config)}
        if self.table is not None:
            self.table.save(folder / "words.safetensors")
            config["word_table_hash"] = self.table.hash
        dtype = torch.float16 if half else torch.float32
        weights = {
            name: tensor.to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
            for name, tensor in self.state_dict().items()
        }
        with replacing(folder / "model.safetensors") as part:
            save_file(weights, part, metadata={"format": "pt", "version": str(FORMAT_VERSION)})
        with replacing(folder / "config.json") as part:
            part.write_text(json.dumps(config, indent=2) + "\n", encoding="utf8")

    @staticmethod
    def from_pretrained(model: str | Path, *, device: torch.device | str = "cpu") -> PyramidTokenizer:
        """Load a folder that `save_pretrained` wrote, or a hub id of one, ready for inference.

        Raises FileNotFoundError for a missing folder or file, ValueError for another format, a config with missing or
        unknown keys or impossible values, and weights that don't fit it.
        """
        folder = model_folder(model)
        who = f"PyramidTokenizer: {folder}"
        config, table_hash = _read_config(folder / "config.json")
        table = WordTable.load(folder / "words.safetensors") if table_hash else None
        if table is not None and table.hash != table_hash:
            raise ValueError(f"{who}: words.safetensors has hash {table.hash}, the weights belong to {table_hash}")
        tokenizer = PyramidTokenizer(config, table)
        try:
            weights = load_file(folder / "model.safetensors")
        except SafetensorError as error:
            found = f"model.safetensors: {error}"
            raise ValueError(f"{who}: expected a model that this version can read, got {found}") from None
        load_weights(tokenizer, weights, who)
        return tokenizer.to(device).eval()


# Keys that the first models of this format version were written without; their defaults are what those models have.
_LATER_KEYS = {"kernel", "expand", "gelu", "adaptive_norm"}


def _read_config(path: Path) -> tuple[TokenizerConfig, str | None]:
    """The config that `save_pretrained` wrote, every key of it, and the hash of the word table."""
    who = f"PyramidTokenizer: {path}"
    try:
        values = json.loads(path.read_text(encoding="utf8"))
        found = (values.pop("format", None), values.pop("format_version", None))
        if found != ("pyramid.tokenizer", FORMAT_VERSION):
            raise ValueError(f"expected a pyramid.tokenizer, version {FORMAT_VERSION}, got {found}")
        table_hash = values.pop("word_table_hash", None)
        config = load(TokenizerConfig, values)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{who}: {error}") from None
    for kind, part in ((TokenizerConfig, values), *((LevelConfig, level) for level in values.get("levels", ()))):
        missing = [field.name for field in dataclasses.fields(kind) if field.name not in part.keys() | _LATER_KEYS]
        if missing:
            raise ValueError(f"{who}: expected every key of {kind.__name__}, found no {', '.join(missing)}")
    return config, table_hash


def _video_shape(video: Tensor) -> tuple[int, int, int, int]:
    """(B, T, H, W), once it is one of video."""
    if video.dim() != 5 or video.shape[1] != 3 or 0 in video.shape:
        raise ValueError(f"PyramidTokenizer: video must be (B, 3, T, H, W), got {tuple(video.shape)}")
    return (video.shape[0], *video.shape[2:])


def _part_shape(part: TokenPyramid) -> tuple[int, int, int, int]:
    return (part.batch_size, part.num_frames, part.height, part.width)


def _check_video(video: Tensor) -> None:
    _video_shape(video)
    if not video.is_floating_point():
        raise ValueError(f"PyramidTokenizer: video must be float in [-1, 1], got {video.dtype}")
    low, high = video.aminmax()
    if not (low >= -1.001 and high <= 1.001):  # negated, so that NaN is refused too
        raise ValueError(
            f"PyramidTokenizer: video must lie in [-1, 1], got values from {low.item():.4g} to {high.item():.4g}"
        )


__all__ = ["PyramidTokenizer", "TokenizerConfig", "TrainingOutput", "load_weights", "model_folder"]
