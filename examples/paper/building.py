"""From a cell's configuration to its model, loss and optimizer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from paper.config import Config
from paper.objectives import OBJECTIVES
from paper.trunks import Trunk
from pml_s2sd import s2sd
from pml_s2sd.embedder import Embedder


class Parts(NamedTuple):
    model: nn.Sequential
    """Trunk and embedder."""
    loss_func: nn.Module
    miner: nn.Module | None
    """The baseline's; with S2SD each space mines for itself, inside the loss."""
    optimizer: torch.optim.Optimizer


def build(config: Config, classes: int, pretrained: bool, device: torch.device) -> Parts:
    """Everything that is trained, on its device. `classes` is the number of training classes."""
    trunk = Trunk(config.trunk, pretrained)
    settings = dict(config.objective)
    objective, beta_learning_rate = settings.pop("name"), settings.pop("beta_learning_rate", None)
    loss, miner = OBJECTIVES[objective](classes, **settings)
    if config.variant == "baseline":
        embedder: nn.Module = Embedder(trunk.out_channels, config.embedding_size)
        loss_func: nn.Module = loss
    else:
        embedder, loss_func = s2sd(
            loss, trunk.out_channels, config.embedding_size, config.variant, miner=miner, **config.s2sd
        )
    model = nn.Sequential(trunk, embedder).to(device)
    loss_func.to(device)

    groups = [{"params": list(model.parameters())}]
    if beta_learning_rate is not None:  # β of the margin loss, of every space
        groups.append({"params": list(loss_func.parameters()), "lr": beta_learning_rate})
    optimizer = torch.optim.Adam(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
    return Parts(model, loss_func, miner if config.variant == "baseline" else None, optimizer)
