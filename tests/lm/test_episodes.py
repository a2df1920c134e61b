"""Learning in context: episodes, what they show, and a model that learns to compare."""

from __future__ import annotations

import pytest
import torch

from lm.episodes import (
    EpisodeConfig,
    EpisodeData,
    EpisodeModel,
    episode_accuracy,
    episode_loss,
    say_by_model,
    say_by_nearest_mean,
    word_features,
)
from pyramid.optim import MuonAdamW
from tasks.models import load_tokenizer


def made(classes, each, dim=8, spread=0.3, seed=0):
    """Clips around a random point for each class."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(classes, dim, generator=generator)
    names = torch.arange(classes).repeat_interleave(each)
    return points[names] + spread * torch.randn(len(names), dim, generator=generator), names.tolist()


def test_an_episode_shows_what_it_says():
    features, names = made(6, 9)
    data = EpisodeData(features, [names])
    drawn = data.draw(4, 3, 50, 10, torch.Generator().manual_seed(0))
    assert drawn.features.shape == (50, 13, 8) and drawn.labels.shape == (50, 13) and drawn.names.shape == (50, 4)
    places = {tuple(row.tolist()): index for index, row in enumerate(features)}
    labels_of = set()
    for rows, labels, known in zip(*drawn, strict=True):
        indices = [places[tuple(row.tolist())] for row in rows]
        assert len(set(indices)) == 13  # the last is none of those before
        meaning = {}
        for index, label in zip(indices, labels.tolist(), strict=True):
            assert meaning.setdefault(label, names[index]) == names[index]
        assert set(meaning) == set(known.tolist()) and len(set(meaning.values())) == 4
        assert all((labels[:-1] == name).sum() == 3 for name in known)
        labels_of.add((meaning[int(labels[-1])], int(labels[-1])))
    assert len(labels_of) > 20  # a class is named anew each time
    assert data.draw(2, 0, 3, 10, torch.Generator()).features.shape == (3, 1, 8)


def test_bad_episodes_are_refused():
    features, names = made(3, 4)
    data = EpisodeData(features, [names])
    with pytest.raises(ValueError, match="expected 2 to 3 ways and shots >= 0, got 4 and 1"):
        data.draw(4, 1, 1, 10, torch.Generator())
    with pytest.raises(ValueError, match="expected two classes or more of 2 clips, got 1"):
        EpisodeData(features[:5], [names[:5]])
    with pytest.raises(ValueError, match="expected 12 values a view, got 3"):
        EpisodeData(features, [["a"] * 3])
    with pytest.raises(ValueError, match="dim must be a multiple of 4, got 6"):
        EpisodeConfig(8, dim=6)


def test_the_nearest_mean_is_right_where_classes_lie_apart_and_no_shot_is_chance():
    data = EpisodeData(*[part if index == 0 else [part] for index, part in enumerate(made(20, 12))])
    found = [episode_accuracy(say_by_nearest_mean, data, ways=5, shots=shots, episodes=400) for shots in (0, 1, 5)]
    assert abs(found[0] - 0.2) < 0.08 and found[1] > 0.85 and found[2] >= found[1] - 0.02


def test_a_model_learns_to_compare_classes_that_it_never_saw():
    features, names = made(200, 6, seed=1)
    train = EpisodeData(features, [names])
    others, names = made(40, 12, seed=2)
    test = EpisodeData(others, [names])
    torch.manual_seed(0)
    model = EpisodeModel(EpisodeConfig(8, num_labels=6, dim=64, mlp=64), features)
    optimizer = MuonAdamW(model, (model.body,), lr=4e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    before = episode_accuracy(say_by_model(model), test, ways=3, shots=4, episodes=200, num_labels=6)
    for _ in range(250):
        drawn = train.draw(3, 4, 16, 6, generator)
        optimizer.zero_grad()
        episode_loss(model, drawn.features, drawn.labels).backward()
        optimizer.step()
    model.eval()
    after = [
        episode_accuracy(say_by_model(model), test, ways=3, shots=shots, episodes=200, num_labels=6) for shots in (0, 4)
    ]
    assert before < 0.5 and after[1] > 0.75 and after[0] < 0.45, (before, after)


def test_a_clip_is_the_mean_of_its_words():
    tokenizer = load_tokenizer("mini")
    tokens = tokenizer.encode(torch.rand(2, 3, 9, 32, 32) * 2 - 1)
    found = word_features(tokenizer, tokens)
    table = tokenizer.table.embeddings
    wanted = torch.stack(
        [
            torch.cat(
                [
                    table[torch.cat([c[level][row].flatten() for c in tokens.ids])].mean(0)
                    for level in tokenizer.word_levels
                ]
            )
            for row in range(2)
        ]
    )
    torch.testing.assert_close(found, wanted)
