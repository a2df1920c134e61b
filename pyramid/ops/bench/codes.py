"""Cases of `nearest_code` and `code_logsumexp`: against a matrix product and its arg-min or logsumexp, cdist, faiss."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyramid import ops
from pyramid.ops.bench.measure import Call, Case, Contest, compiled, forward_backward

# Settings of OpenBLAS, which faiss brings along, that make it slower than what it chooses itself.
SLOW_SETTINGS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


def cases(device: str) -> list[Case]:
    on_cpu = torch.device(device).type == "cpu"
    sizes = [(4096, 8192, 8), (4096, 8192, 32), (4096, 1024, 256), (2048, 32768, 384)]
    sizes.append((1024, 65536, 512) if on_cpu else (65536, 65536, 512))
    out = [Case("nearest_code", "x".join(map(str, size)), device, nearest(*size)) for size in sizes]
    words = (2048, 32768, 384)
    name = f"{'x'.join(map(str, words))} forward+backward"
    return [*out, Case("code_logsumexp", name, device, logsumexp(*words, perplexity=300.0))]


def nearest(num_rows: int, num_codes: int, dim: int) -> Callable[[torch.device], Contest]:
    """Normal rows and codes. The rivals know the codes' norms beforehand, as faiss does."""

    def make(device: torch.device) -> Contest:
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(num_rows, dim, generator=generator).to(device)
        codebook = torch.randn(num_codes, dim, generator=generator).to(device)
        rivals: dict[str, Call | str] = {}
        if device.type == "cuda":
            for name, dtype, tf32 in (("fp32", torch.float32, False), ("TF32", torch.float32, True)):
                rivals |= _addmm(z, codebook, f" {name}", dtype, tf32)
            rivals |= _addmm(z, codebook, " bf16", torch.bfloat16, False)
        else:
            rivals |= _addmm(z, codebook, "", torch.float32, False)
        rivals["cdist+argmin"] = lambda: torch.cdist(z, codebook).argmin(-1)
        if device.type == "cpu":
            rivals["faiss IndexFlatL2"] = _faiss(z, codebook)
        return Contest(lambda: ops.nearest_code(z, codebook), rivals)

    return make


def _addmm(z: Tensor, codebook: Tensor, suffix: str, dtype: torch.dtype, tf32: bool) -> dict[str, Call | str]:
    z, norms, codes = z.to(dtype), codebook.square().sum(-1).to(dtype), codebook.to(dtype)

    def eager() -> Tensor:
        return torch.addmm(norms, z, codes.T, alpha=-2).argmin(-1)

    def with_precision(call: Call) -> Call:
        def step() -> Any:
            before = torch.backends.cuda.matmul.allow_tf32
            torch.backends.cuda.matmul.allow_tf32 = tf32
            try:
                return call()
            finally:
                torch.backends.cuda.matmul.allow_tf32 = before

        return step if z.is_cuda else call

    name = f"addmm+argmin{suffix}"
    return {name: with_precision(eager), f"{name}, compiled": with_precision(compiled(eager))}


def _faiss(z: Tensor, codebook: Tensor) -> Call | str:
    """An exact index over the codes, or why there is none."""
    if importlib.util.find_spec("faiss") is None:
        return "faiss is not installed: pip install faiss-cpu"
    for name in SLOW_SETTINGS:  # read when faiss is loaded, so it counts to take them away before
        os.environ.pop(name, None)
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook.numpy())
    return lambda: index.search(z.numpy(), 1)


def logsumexp(num_rows: int, num_codes: int, dim: int, perplexity: float) -> Callable[[torch.device], Contest]:
    """Rows and codes on the unit sphere, as words are; tau such that a row sees about `perplexity` words."""

    def make(device: torch.device) -> Contest:
        generator = torch.Generator().manual_seed(0)
        z = torch.nn.functional.normalize(torch.randn(num_rows, dim, generator=generator), dim=-1)
        codebook = torch.nn.functional.normalize(torch.randn(num_codes, dim, generator=generator), dim=-1)
        tau = _temperature(z[:64], codebook, perplexity)
        note = f"tau {tau:.4f}: a row sees {_perplexity(z[:64], codebook, tau):.0f} of {num_codes} codes (perplexity)"
        z, codebook = z.to(device).requires_grad_(), codebook.to(device)
        bias = -codebook.square().sum(-1) / tau

        def plain(z: Tensor) -> Tensor:
            return torch.addmm(bias, z, codebook.T, alpha=2 / tau).logsumexp(-1) - z.square().sum(-1) / tau

        return Contest(
            forward_backward(lambda z: ops.code_logsumexp(z, codebook, tau), z),
            {
                "addmm+logsumexp": forward_backward(plain, z),
                "addmm+logsumexp, compiled": forward_backward(compiled(plain), z),
            },
            note,
        )

    return make


def _perplexity(z: Tensor, codebook: Tensor, tau: float) -> float:
    log_p = (-torch.cdist(z, codebook).square() / tau).log_softmax(-1)
    return float((-(log_p.exp() * log_p).sum(-1)).mean().exp())


def _temperature(z: Tensor, codebook: Tensor, perplexity: float) -> float:
    """By bisection of its logarithm: the warmer, the more words count."""
    low, high = 1e-4, 1e4
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if _perplexity(z, codebook, middle) > perplexity else (middle, high)
    return high
