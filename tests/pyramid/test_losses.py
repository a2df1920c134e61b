import itertools
import math

import pytest
import torch

from pyramid.losses import (
    average_match_loss,
    coverage,
    independent_word_loss,
    reconstruction_loss,
    word_phrase_loss,
    word_set_loss,
)
from pyramid.metrics import CodeUsage, psnr, ssim
from pyramid.ops import nearest_code


def table():
    return torch.randn(20, 6, generator=torch.Generator().manual_seed(0)) * 2


def hit(queries, targets, embeddings):
    return coverage(nearest_code(queries.detach(), embeddings).ids, targets)


def test_every_word_is_assigned_to_a_position_of_its_own():
    """Queries on the embeddings of the target words, in any order, have next to no loss."""
    embeddings = table()
    targets = [[3, 7, 11], [0, 1, 2]]
    queries = torch.stack([embeddings[[11, 3, 7]], embeddings[[1, 2, 0]]])
    assert word_set_loss(queries, targets, embeddings, 0.05) < 1e-3
    assert hit(queries, targets, embeddings) == 1.0


def test_the_same_word_three_times_covers_one_target():
    embeddings = table()
    queries = embeddings[[3, 3, 3]][None]
    assert word_set_loss(queries, [[3, 7, 11]], embeddings, 0.05) > 1
    assert hit(queries, [[3, 7, 11]], embeddings) == pytest.approx(1 / 3)


def test_a_position_left_over_says_a_word_of_the_clip_again_and_no_other():
    embeddings = table()
    again, other = embeddings[[3, 7, 3]][None], embeddings[[3, 7, 1]][None]
    assert word_set_loss(again, [[3, 7]], embeddings, 0.05) < 1e-3
    assert word_set_loss(other, [[3, 7]], embeddings, 0.05) > 1


@pytest.mark.parametrize("targets", [[[], []], [[], [5]], [list(range(12)), [1]]])
def test_any_number_of_words(targets):
    embeddings = table()
    queries = torch.randn(2, 4, 6, requires_grad=True)
    loss = word_set_loss(queries, targets, embeddings, 0.1)
    loss.backward()
    assert queries.grad.isfinite().all() and 0 <= hit(queries, targets, embeddings) <= 1
    assert (loss == 0) == (targets == [[], []])


def falls_to(targets, loss_of, shape=(3, 4, 6), steps=200):
    """Coverage of the targets after descending a loss of the queries alone."""
    queries = torch.randn(shape, requires_grad=True)
    optimizer = torch.optim.Adam([queries], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(queries).backward()
        optimizer.step()
    return hit(queries, targets, table()), queries


def test_the_loss_falls_to_the_words():
    targets = [[1, 2, 3], [4, 5], [6]]
    covered, _ = falls_to(targets, lambda q: word_set_loss(q, targets, table(), 0.1))
    assert covered == 1.0


# -------------------------------------------------------------------------------------------- phrases

GROUPS = (range(1, 4), range(4, 7))  # of positions 0 .. 6


def phrase_loss(queries, phrases, temperature=0.05):
    return word_phrase_loss(queries, phrases, table(), temperature, GROUPS)


def said(ids, phrases):
    """The loss where the positions say these words."""
    return phrase_loss(table()[ids][None], [phrases]).item()


def test_words_of_a_phrase_are_said_side_by_side():
    """Two things in either order, each in a group; not one's colour in the other's, which a set cannot tell apart."""
    phrases = [[1, 2, 3], [4, 5, 6]]
    assert said([1, 3, 1, 2, 6, 5, 4], phrases) < 1e-3
    assert said([6, 6, 5, 4, 2, 1, 3], phrases) < 1e-3
    mixed = [1, 3, 1, 5, 6, 2, 4]
    assert said(mixed, phrases) > 1
    assert word_set_loss(table()[mixed][None], [[1, 2, 3, 4, 5, 6]], table(), 0.05) < 1e-3


def test_two_things_may_share_a_word():
    assert said([1, 1, 2, 3, 1, 5, 6], [[1, 2, 3], [1, 5, 6]]) < 1e-3
    assert said([1, 1, 2, 3, 4, 5, 6], [[1, 2, 3], [1, 5, 6]]) > 1


def test_what_fills_a_group_goes_before_what_does_not():
    assert said([1, 1, 2, 3, 7, 7, 7], [[7], [1, 2, 3]]) < 1e-3
    assert said([1, 7, 7, 7, 1, 2, 3], [[7], [1, 2, 3]]) > 1


def test_what_finds_no_room_is_said_outside_of_the_groups_taken():
    assert said([9, 1, 2, 3, 4, 5, 6], [[1, 2, 3, 9], [4, 5, 6]]) < 1e-3  # first in the phrase, first in the group
    assert said([3, 1, 2, 9, 4, 5, 6], [[1, 2, 3, 9], [4, 5, 6]]) > 1
    assert said([8, 1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6], [8]]) < 1e-3
    assert said([5, 1, 2, 3, 4, 6, 7], [[1, 2, 3, 4, 5, 6, 7]]) < 1e-3  # one phrase: the rest is like a set


def test_short_phrases_share_a_group_where_there_are_too_few():
    assert said([1, 1, 2, 3, 7, 8, 9], [[1, 2, 3], [7], [8], [9]]) < 1e-3
    assert said([8, 1, 2, 3, 7, 7, 7], [[1, 2, 3], [7], [8]]) > 1
    assert said([1, 1, 2, 3, 4, 5, 6], [[1, 2, 3], [7], [4, 5, 6]]) > 1  # a phrase of three is no short one


@pytest.mark.parametrize(
    "phrases", [[[], []], [[[]], [[5]]], [[[k] for k in range(12)], [[1, 2]]], [[list(range(12))] * 4, [[3], [3]]]]
)
def test_any_number_of_phrases(phrases):
    queries = torch.randn(2, 7, 6, requires_grad=True)
    loss = phrase_loss(queries, phrases, 0.1)
    loss.backward()
    assert queries.grad.isfinite().all()
    assert (loss == 0) == (phrases == [[], []])


def test_the_loss_falls_to_the_phrases():
    phrases = [[[1, 2, 3], [4, 5, 6]], [[7], [1, 8, 9]], [[4, 5]]]
    targets = [[word for phrase in clip for word in phrase] for clip in phrases]
    covered, queries = falls_to(targets, lambda q: phrase_loss(q, phrases, 0.1), shape=(3, 7, 6))
    ids = nearest_code(queries.detach(), table()).ids
    assert covered == 1.0
    assert {frozenset(ids[0, list(group)].tolist()) for group in GROUPS} == {frozenset((1, 2, 3)), frozenset((4, 5, 6))}


# -------------------------------------------------------------------------------------------- independent targets


def levels_of(queries):
    """(B, 5, E) as a level of one cell and one of four."""
    return [queries[:, :1].unflatten(1, (1, 1, 1)), queries[:, 1:].unflatten(1, (1, 2, 2))]


def test_independent_targets_by_hand():
    embeddings, queries = table(), torch.randn(2, 5, 6)
    scores = torch.rand(2, 20)
    scores[:, 3] = 1
    loss = independent_word_loss(levels_of(queries), [scores, scores], embeddings, (0.9, 0.5), 0.7)
    log_p = torch.log_softmax(-(queries[:, :, None] - embeddings).square().sum(-1) / 0.7, dim=-1)
    expected = []
    for b, p in itertools.product(range(2), range(5)):
        words = scores[b] >= (0.9 if p == 0 else 0.5)
        expected.append(-log_p[b, p][words].mean())
    torch.testing.assert_close(loss, torch.stack(expected).mean(), atol=1e-4, rtol=1e-4)


def test_regions_have_targets_of_their_own():
    embeddings = table()
    queries = embeddings[[4, 1, 2, 3, 5]][None]
    whole = torch.nn.functional.one_hot(torch.tensor([4]), 20).float()
    regions = torch.nn.functional.one_hot(torch.tensor([1, 2, 3, 5]), 20).float().reshape(1, 1, 2, 2, 20)
    assert independent_word_loss(levels_of(queries), [whole, regions], embeddings, (0.9,), 0.05) < 1e-3
    assert independent_word_loss(levels_of(queries), [whole, regions.flip(2)], embeddings, (0.9,), 0.05) > 1


def test_independent_targets_repeat_the_easiest_word():
    """What the other losses are for: all positions of a clip may name one word."""
    scores = torch.zeros(3, 20)
    targets = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    for row, words in enumerate(targets):
        scores[row, words] = torch.tensor([1.0, 0.97, 0.96])
    thresholds = (0.98,)
    covered, _ = falls_to(
        targets, lambda q: independent_word_loss(levels_of(q), [scores] * 2, table(), thresholds, 0.1), (3, 5, 6)
    )
    assert covered == pytest.approx(1 / 3)


# -------------------------------------------------------------------------------------------- the average


def test_average_match_by_hand():
    """Two clips, words in their own space, positions of the second level counted in."""
    embeddings, words = table(), torch.nn.functional.normalize(torch.randn(20, 7), dim=1)
    queries = torch.randn(2, 5, 6)
    targets = torch.nn.functional.normalize(torch.randn(2, 7), dim=1)
    share = torch.softmax(-(queries[:, :, None] - embeddings).square().sum(-1) / 0.7, dim=-1)
    expected = []
    for end in (1, 5):
        mean = (share[:, :end] @ words).mean(dim=1)
        cosine = torch.nn.functional.normalize(mean, dim=1) @ targets.T
        expected.append(torch.nn.functional.cross_entropy(cosine / 0.2, torch.arange(2)))
    loss = average_match_loss(levels_of(queries), targets, words, embeddings, 0.7, 0.2)
    torch.testing.assert_close(loss, torch.stack(expected).mean(), atol=1e-4, rtol=1e-4)


def test_clips_that_say_the_same_are_no_negatives_and_unknown_ones_count_for_nothing():
    embeddings, words = table(), torch.nn.functional.normalize(torch.randn(20, 7), dim=1)
    queries = torch.randn(3, 5, 6)
    target = torch.nn.functional.normalize(torch.randn(7), dim=0)
    both = torch.stack([target, target, torch.zeros(7)])
    assert average_match_loss(levels_of(queries), both, words, embeddings, 0.7).abs() < 1e-6
    unknown = torch.zeros(3, 7)
    queries.requires_grad_()
    loss = average_match_loss(levels_of(queries), unknown, words, embeddings, 0.7)
    loss.backward()
    assert loss == 0 and queries.grad.abs().sum() == 0


def test_the_average_tells_clips_apart():
    """Descending it brings the average of the words near the clip's own vector."""
    embeddings = table()
    words = torch.nn.functional.normalize(embeddings, dim=1)
    targets = torch.nn.functional.normalize(torch.stack([words[[1, 2]].sum(0), words[[4, 5]].sum(0)]), dim=1)
    _, queries = falls_to(
        [[1], [4]], lambda q: average_match_loss(levels_of(q), targets, words, embeddings, 0.5), (2, 5, 6)
    )
    said = words[nearest_code(queries.detach(), embeddings).ids].mean(dim=1)
    cosine = torch.nn.functional.normalize(said, dim=1) @ targets.T
    assert (cosine.diagonal() - cosine.fliplr().diagonal()).min() > 0.3  # nearer to its own than to the other


def test_figures():
    video = torch.rand(2, 3, 3, 16, 16) * 2 - 1
    assert reconstruction_loss(video, video) == 0
    assert (psnr(video, video) == 100).all() and torch.allclose(ssim(video, video), torch.ones(2))
    torch.testing.assert_close(psnr(torch.zeros(1, 3, 1, 4, 4), torch.full((1, 3, 1, 4, 4), 0.2)), torch.tensor([20.0]))


def test_reconstruction_is_measured_in_decibels_of_each_clip():
    clean = torch.zeros(3, 3, 2, 8, 8)
    noisy = clean + torch.tensor([0.3, 0.3, 0.03]).view(3, 1, 1, 1, 1)  # 20 dB below 0.3
    one, both, fine = (reconstruction_loss(noisy[rows], clean[rows]) for rows in ([0], [0, 1], [2]))
    torch.testing.assert_close(one, both)
    torch.testing.assert_close((one - fine).item(), math.log((0.09 + 1e-4) / (0.0009 + 1e-4)))
    torch.testing.assert_close(reconstruction_loss(noisy, clean), (2 * one + fine) / 3)


def test_code_usage():
    usage = CodeUsage(8)
    assert usage.compute() == {"usage": 0.0, "perplexity": 0.0}
    usage.update(torch.tensor([0, 1, 2, 3]))
    assert usage.compute() == {"usage": 0.5, "perplexity": pytest.approx(4)}
    usage.reset()
    usage.update(torch.tensor([5, 5]))
    assert usage.compute() == {"usage": 0.125, "perplexity": pytest.approx(1)}
