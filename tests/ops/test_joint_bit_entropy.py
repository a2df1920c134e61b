"""What is special to joint_bit_entropy: it is the entropy over all codes, exactly, also over several ranks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.multiprocessing

from pyramid import ops
from pyramid.ops import _library, reference


@pytest.fixture(params=["reference", "native"])
def backend(request):
    if request.param == "native" and not _library.load():
        pytest.skip("the extension is not built")
    with ops.backend(request.param):
        yield request.param


def joint_by_listing(x: torch.Tensor, temperature: float) -> torch.Tensor:
    d = x.shape[1]
    codes = ((torch.arange(2**d)[:, None] >> torch.arange(d)) & 1).to(x.dtype) * 2 - 1
    mean = torch.softmax(2 * x @ codes.T / temperature, -1).mean(0)
    return -(mean * mean.log()).sum()


@pytest.mark.parametrize("num_bits", [1, 2, 5, 8])
def test_is_that_of_the_mean_over_all_codes(num_bits, backend):
    x = torch.randn(13, num_bits, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(ops.joint_bit_entropy(x, 1.3), joint_by_listing(x, 1.3))
    assert torch.autograd.gradcheck(lambda x: ops.joint_bit_entropy(x, 1.3), (x,))
    assert torch.autograd.gradgradcheck(lambda x: ops.joint_bit_entropy(x, 1.3), (x,))


def test_of_one_row_is_its_own_entropy(backend):
    x = torch.randn(1, 9, dtype=torch.float64)
    torch.testing.assert_close(ops.joint_bit_entropy(x, 0.8), ops.bit_quantize(x, 0.8).entropy[0])


def test_of_saturated_bits(backend):
    """Two opposite corners: log 2, and a gradient that is a number."""
    x = torch.full((2, 10), 100.0)
    x[1] = -100
    x.requires_grad_()
    entropy = ops.joint_bit_entropy(x, 0.01)
    entropy.backward()
    assert entropy.item() == pytest.approx(math.log(2)) and x.grad.isfinite().all()


@pytest.mark.skipif(not _library.load(), reason="the extension is not built")
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_infinite_is_certain_and_nan_stays_visible(value, instruction_set):
    x = torch.zeros(40, 6)
    x[33, 2] = value
    joint = torch.ops.pyramid.joint_bit_sum(x, 1.0)
    torch.testing.assert_close(joint, reference.joint_bit_sum(x, 1.0), equal_nan=True)


@pytest.mark.skipif(not _library.load(), reason="the extension is not built")
def test_of_twenty_bits_sums_to_the_number_of_rows(instruction_set):
    x = torch.randn(50, 20)
    joint = torch.ops.pyramid.joint_bit_sum(x, 1.0)
    assert joint.shape == (1024, 1024) and joint.double().sum().item() == pytest.approx(50, rel=1e-6)
    torch.testing.assert_close(joint, reference.joint_bit_sum(x, 1.0))


def test_ignores_autocast(backend):
    x = torch.randn(64, 10)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.joint_bit_entropy(x, 1.0), ops.joint_bit_entropy(x.clone(), 1.0))
        inside = ops.joint_bit_entropy(x, 1.0)
    assert torch.equal(inside, ops.joint_bit_entropy(x, 1.0))


def _rank(rank: int, port: str, x: torch.Tensor, queue) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{port}", rank=rank, world_size=2)
    mine = (x[:3] if rank == 0 else x[3:]).clone().requires_grad_()
    entropy = ops.joint_bit_entropy(mine, 1.0, torch.distributed.group.WORLD)
    entropy.backward()
    queue.put((rank, entropy.item(), mine.grad.tolist()))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_over_two_ranks_is_that_of_one(tmp_path, backend):
    x = torch.randn(8, 6, dtype=torch.float64, requires_grad=True)
    whole = ops.joint_bit_entropy(x, 1.0)
    whole.backward()
    context = torch.multiprocessing.get_context("fork")
    queue = context.Queue()
    args = (str(tmp_path / "store"), x.detach(), queue)
    ranks = [context.Process(target=_rank, args=(rank, *args)) for rank in range(2)]
    for process in ranks:
        process.start()
    results = sorted(queue.get(timeout=60) for _ in ranks)
    for process in ranks:
        process.join(timeout=60)
    assert [entropy for _, entropy, _ in results] == pytest.approx([whole.item()] * 2, rel=1e-12)
    # DDP averages gradients over ranks: the sum of what each rank has, over 2, is that of one process.
    both = torch.tensor([*results[0][2], *results[1][2]], dtype=torch.float64)
    torch.testing.assert_close(both / 2, x.grad)
