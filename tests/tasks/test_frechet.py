import hashlib

import pytest
import torch

from tasks.frechet import frechet_distance, weights_hash


def with_moments(mean, covariance, rows=64):
    """Rows (N, F) of exactly this mean and covariance."""
    mean, covariance = torch.tensor(mean).double(), torch.tensor(covariance).double()
    noise = torch.randn(rows, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
    noise = noise - noise.mean(dim=0)
    white = noise @ torch.linalg.inv(torch.linalg.cholesky(noise.T @ noise / (rows - 1))).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def test_of_a_set_and_itself_it_is_zero():
    a = torch.randn(50, 7)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-9)


def test_closed_forms():
    line = frechet_distance(with_moments([1.0], [[4.0]]), with_moments([3.0], [[25.0]], rows=80))
    assert line == pytest.approx((3 - 1) ** 2 + (5 - 2) ** 2)
    diagonal = frechet_distance(
        with_moments([0.0, 0.0], [[1.0, 0.0], [0.0, 9.0]]), with_moments([0.0, 2.0], [[4.0, 0.0], [0.0, 1.0]])
    )
    assert diagonal == pytest.approx(4 + (2 - 1) ** 2 + (1 - 3) ** 2)
    # Covariances that do not commute: for 2x2, tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)).
    a, b = [[2.0, 1.0], [1.0, 3.0]], [[1.0, -0.5], [-0.5, 2.0]]
    product = torch.tensor(a) @ torch.tensor(b)
    root = (product.trace() + 2 * torch.det(product).sqrt()).sqrt()
    wanted = 5 + 3 - 2 * root.item()
    assert frechet_distance(with_moments([0.0, 0.0], a), with_moments([0.0, 0.0], b)) == pytest.approx(wanted, abs=1e-5)


def test_it_is_symmetric_and_unmoved_by_rotation_with_fewer_rows_than_features():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(10, 24, generator=generator), 2 * torch.randn(12, 24, generator=generator) + 1
    turn = torch.linalg.qr(torch.randn(24, 24, generator=generator).double())[0]
    distance = frechet_distance(a, b)
    assert distance > 10
    assert frechet_distance(b, a) == pytest.approx(distance)
    assert frechet_distance(a.double() @ turn, b.double() @ turn) == pytest.approx(distance)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(1, 3), torch.zeros(4, 3), r"of 2 rows or more, got \(1, 3\)"),
        (torch.zeros(4, 3), torch.zeros(4), r"of 2 rows or more, got \(4,\)"),
        (torch.zeros(4, 3), torch.zeros(4, 2), "as many features in both, got 3 and 2"),
        (torch.zeros(4, 3), torch.full((4, 3), float("nan")), "expected finite features"),
    ],
)
def test_bad_features_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)


def test_the_hash_is_of_the_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert weights_hash(tmp_path) == hashlib.sha256(b"weights").hexdigest()[:12]
    with pytest.raises(FileNotFoundError):
        weights_hash(tmp_path / "absent")
