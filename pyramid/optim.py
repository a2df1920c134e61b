"""One optimizer of two: Muon for the matrices inside a network, AdamW for everything else.

Muon (Jordan et al., 2024) orthogonalizes a matrix's momentum; with updates scaled to AdamW's size (Moonlight,
2502.16982) both share a learning rate. docs/experiments.md has the comparison with AdamW alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn


class MuonAdamW(torch.optim.Optimizer):
    """`inside`: modules whose linear weights go to Muon; all other parameters of `model` go to AdamW."""

    def __init__(self, model: nn.Module, inside: Iterable[nn.Module], *, lr: float, weight_decay: float) -> None:
        matrices = {
            id(layer.weight): layer.weight
            for module in inside
            for layer in module.modules()
            if isinstance(layer, nn.Linear) and min(layer.weight.shape) >= 32 and layer.weight.requires_grad
        }
        others = [p for p in model.parameters() if id(p) not in matrices and p.requires_grad]
        if not matrices:
            raise ValueError("MuonAdamW: expected linear layers inside the given modules, found none")
        self.muon = torch.optim.Muon(
            list(matrices.values()), lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
        # The groups are the two optimizers' own dicts, so that a scheduler's learning rate reaches them.
        super().__init__(self.muon.param_groups + self.adamw.param_groups, {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.muon.step()
        self.adamw.step()
        return loss

    def state_dict(self) -> dict:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = self.muon.param_groups + self.adamw.param_groups
