import pytest
import torch

from pyramid.losses import reconstruction_loss, word_set_loss
from pyramid.metrics import CodeUsage, psnr, ssim


def table():
    return torch.randn(20, 6, generator=torch.Generator().manual_seed(0)) * 2


def test_every_word_is_assigned_to_a_position_of_its_own():
    """Queries on the embeddings of the target words, in any order, have next to no loss."""
    embeddings = table()
    targets = [[3, 7, 11], [0, 1, 2]]
    queries = torch.stack([embeddings[[11, 3, 7]], embeddings[[1, 2, 0]]])
    loss, hit = word_set_loss(queries, targets, embeddings, 0.05)
    assert loss < 1e-3 and hit == 1.0


def test_the_same_word_three_times_covers_one_target():
    embeddings = table()
    loss, hit = word_set_loss(embeddings[[3, 3, 3]][None], [[3, 7, 11]], embeddings, 0.05)
    assert loss > 1 and hit == pytest.approx(1 / 3)


@pytest.mark.parametrize("targets", [[[], []], [[], [5]], [list(range(12)), [1]]])
def test_any_number_of_words(targets):
    embeddings = table()
    queries = torch.randn(2, 4, 6, requires_grad=True)
    loss, hit = word_set_loss(queries, targets, embeddings, 0.1)
    loss.backward()
    assert queries.grad.isfinite().all() and 0 <= hit <= 1
    assert (loss == 0) == (targets == [[], []])


def test_the_loss_falls_to_the_words():
    embeddings = table()
    queries = torch.randn(3, 4, 6, requires_grad=True)
    targets = [[1, 2, 3], [4, 5], [6]]
    optimizer = torch.optim.Adam([queries], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        word_set_loss(queries, targets, embeddings, 0.1)[0].backward()
        optimizer.step()
    assert word_set_loss(queries, targets, embeddings, 0.1)[1] == 1.0


def test_figures():
    video = torch.rand(2, 3, 3, 16, 16) * 2 - 1
    assert reconstruction_loss(video, video) == 0
    assert (psnr(video, video) == 100).all() and torch.allclose(ssim(video, video), torch.ones(2))
    torch.testing.assert_close(psnr(torch.zeros(1, 3, 1, 4, 4), torch.full((1, 3, 1, 4, 4), 0.2)), torch.tensor([20.0]))


def test_code_usage():
    usage = CodeUsage(8)
    assert usage.compute() == {"usage": 0.0, "perplexity": 0.0}
    usage.update(torch.tensor([0, 1, 2, 3]))
    assert usage.compute() == {"usage": 0.5, "perplexity": pytest.approx(4)}
    usage.reset()
    usage.update(torch.tensor([5, 5]))
    assert usage.compute() == {"usage": 0.125, "perplexity": pytest.approx(1)}
