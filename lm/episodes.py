"""Learning in context over pyramid words, by a small language model trained here: nothing but the clips that stand
before it says what a label means.

    [clip] [label] [clip] [label] ... [clip] -> label

A clip is one token: the means of its words' rows of the frozen table, level by level. In every episode the classes
are named anew and at random, so that no label can be learned by heart, and what is learned is to compare (Chan et al.,
2205.05055: labels that change bring forth learning from context; their images are one token each as well). At test the
classes are others than in training.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from pyramid.tokenizer import PyramidTokenizer
from pyramid.tokens import TokenPyramid

BATCH = 50  # episodes at once

# Shapes: B episodes, S clips of an episode, F features of a clip, N labels.


@torch.no_grad()
def word_features(tokenizer: PyramidTokenizer, tokens: TokenPyramid) -> Tensor:
    """(clips, F) float32: for each word level the mean of its words' rows of the table, over all chunks. Raises
    ValueError for tokens without a word level."""
    levels = [level for level in tokenizer.word_levels if level < tokens.num_levels]
    if not levels:
        raise ValueError(f"word_features: expected a level of words among the first {tokens.num_levels}, got none")
    means = []
    for level in levels:
        ids = torch.cat([chunk[level].flatten(1) for chunk in tokens.ids], dim=1).to(tokenizer.device)
        means.append(tokenizer.levels.levels[level].quantizer.ids_to_codes(ids[:, None, None])[:, 0, 0].mean(dim=1))
    return torch.cat(means, dim=1).float()


@dataclass(frozen=True)
class EpisodeConfig:
    """`num_features`: of a clip; `num_labels`: names to give, at least as many as an episode has classes."""

    num_features: int
    num_labels: int = 10
    dim: int = 128
    num_layers: int = 2
    num_heads: int = 2
    mlp: int = 256

    def __post_init__(self) -> None:
        for name in ("num_features", "num_labels", "dim", "num_layers", "num_heads", "mlp"):
            if getattr(self, name) < 1:
                raise ValueError(f"EpisodeConfig: {name} must be at least 1, got {getattr(self, name)}")
        if self.dim % (2 * self.num_heads):
            raise ValueError(f"EpisodeConfig: dim must be a multiple of {2 * self.num_heads}, got {self.dim}")


class EpisodeModel(nn.Module):
    """A small causal Llama over clips and labels in turns. `features` (clips, F), of training clips: what all of them
    share is taken away."""

    def __init__(self, config: EpisodeConfig, features: Tensor) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", features.mean(dim=0))
        self.register_buffer("scale", (features - self.mean).square().mean().rsqrt())
        self.clip = nn.Linear(config.num_features, config.dim)
        self.labels = nn.Embedding(config.num_labels, config.dim)
        llama = LlamaConfig(
            vocab_size=1,
            bos_token_id=None,
            eos_token_id=None,
            hidden_size=config.dim,
            intermediate_size=config.mlp,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_heads,
            max_position_embeddings=4096,
        )
        self.body = LlamaModel(llama)
        for layer in self.body.layers:  # at first what is alike is looked at: what to do with it is learned in minutes
            nn.init.orthogonal_(layer.self_attn.q_proj.weight)
            layer.self_attn.k_proj.weight.data.copy_(layer.self_attn.q_proj.weight.data)
        self.head = nn.Linear(config.dim, config.num_labels)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """features (B, S, F), labels (B, S) int64 -> logits (B, S, num_labels): of each clip's label, from the clips
        and labels before it and the clip itself."""
        clips = self.clip((features - self.mean) * self.scale)
        named = self.labels(labels) + clips
        sequence = torch.stack([clips, named], dim=2).flatten(1, 2)
        out = self.body(inputs_embeds=sequence, use_cache=False).last_hidden_state
        return self.head(out[:, ::2])


class Episodes(NamedTuple):
    """`features` (B, S, F) of clips and their `labels` (B, S) int64, the last of which is asked for; `names` (B, ways):
    the labels of all classes of the episode."""

    features: Tensor
    labels: Tensor
    names: Tensor


class EpisodeData:
    """Clips to draw episodes from. `features` (clips, F); `views`: ways to class them, each with one value a clip: what
    a clip is in one attribute, or in all of them together. An episode takes one view, at random."""

    def __init__(self, features: Tensor, views: Sequence[Sequence[Hashable]], least: int = 2) -> None:
        """Values with fewer than `least` clips are left out. Raises ValueError for a view without two others."""
        self.features = features
        self.members: list[list[Tensor]] = []
        for values in views:
            if len(values) != len(features):
                raise ValueError(f"EpisodeData: expected {len(features)} values a view, got {len(values)}")
            groups: dict[Hashable, list[int]] = {}
            for index, value in enumerate(values):
                groups.setdefault(value, []).append(index)
            kept = [torch.tensor(group) for group in groups.values() if len(group) >= least]
            if len(kept) < 2:
                raise ValueError(f"EpisodeData: expected two classes or more of {least} clips, got {len(kept)}")
            self.members.append(kept)

    def draw(self, ways: int, shots: int, batch: int, num_labels: int, generator: torch.Generator) -> Episodes:
        """`shots` clips of each of `ways` classes in random order, then one more of one of them, which none before is.
        Clips come again only where a class has too few. Raises ValueError for more classes than there are, or than
        labels."""
        most = min([num_labels, *map(len, self.members)])
        if not 2 <= ways <= most or shots < 0:
            raise ValueError(f"EpisodeData.draw: expected 2 to {most} ways and shots >= 0, got {ways} and {shots}")
        rows, labels, all_names = [], [], []
        for _ in range(batch):
            members = self.members[int(torch.randint(len(self.members), (), generator=generator))]
            classes = torch.randperm(len(members), generator=generator)[:ways].tolist()
            names = torch.randperm(num_labels, generator=generator)[:ways]
            all_names.append(names)
            asked = int(torch.randint(ways, (), generator=generator))
            shown, last = [], -1
            for way, name in enumerate(classes):
                clips = members[name][torch.randperm(len(members[name]), generator=generator)]
                if way == asked:
                    last, clips = int(clips[0]), clips[1:]
                shown.append(clips.repeat(-(-shots // len(clips)))[:shots])
            said = names.repeat_interleave(shots)
            order = torch.randperm(ways * shots, generator=generator)
            rows.append(torch.cat([torch.cat(shown)[order], torch.tensor([last])]))
            labels.append(torch.cat([said[order], names[asked : asked + 1]]))
        return Episodes(self.features[torch.stack(rows)], torch.stack(labels), torch.stack(all_names))


def episode_loss(model: EpisodeModel, features: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every clip's label, from the clips before it, scalar; shapes as `EpisodeModel.forward`."""
    return nn.functional.cross_entropy(model(features, labels).flatten(0, 1), labels.flatten())


def say_by_model(model: EpisodeModel) -> Callable[[Episodes], Tensor]:
    """Episodes -> what the model says of their last clips (B,): one of the names of the episode."""

    @torch.no_grad()
    def say(episodes: Episodes) -> Tensor:
        logits = model(episodes.features, episodes.labels)[:, -1].gather(1, episodes.names)
        return episodes.names.gather(1, logits.argmax(dim=1, keepdim=True))[:, 0]

    return say


def say_by_nearest_mean(episodes: Episodes) -> Tensor:
    """The same without a model: the label whose clips' mean is nearest (prototypes, 1703.05175, with nothing learned);
    the first name where no clip is shown."""
    said = []
    for rows, labels, names in zip(*episodes, strict=True):
        shown = labels[:-1]
        if not len(shown):
            said.append(names[0])
            continue
        means = torch.stack([rows[:-1][shown == name].mean(dim=0) for name in names])
        said.append(names[torch.cdist(rows[-1:], means)[0].argmin()])
    return torch.stack(said)


def episode_accuracy(
    say: Callable[[Episodes], Tensor],
    data: EpisodeData,
    *,
    ways: int,
    shots: int,
    episodes: int = 500,
    num_labels: int = 10,
    seed: int = 0,
) -> float:
    """The share of episodes whose last clip is named right. With no shot nothing tells what a name means: chance."""
    generator, right = torch.Generator().manual_seed(seed), 0
    for first in range(0, episodes, BATCH):
        drawn = data.draw(ways, shots, min(BATCH, episodes - first), num_labels, generator)
        right += int((say(drawn) == drawn.labels[:, -1]).sum())
    return right / episodes
