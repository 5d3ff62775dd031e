"""Mixed precision of trunk and heads; objectives and distillation always see float32."""

from __future__ import annotations

import torch

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "float32")


def make_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Keeps float16 gradients from vanishing; passes the others through."""
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")
