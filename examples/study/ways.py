"""The ways of training that the study compares, by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LARGE = 1024
"""The size of the large space, of the recommended setting and of teachers."""
AUX_SIZES = (128, 256, 512, LARGE)
"""4 to 32 times d = 32, as the paper's 512 to 2048 are 4 to 16 times its 128."""
GAMMAS = (0.5, 1.0, 5.0, 10.0, 50.0, 100.0)
DELAYS = {"0": 0.0, "1/3": 1 / 3, "2/3": 2 / 3}


@dataclass(frozen=True)
class Way:
    """How a model is trained. Results keep the name alone: what changes here gets another name.

    Args:
        s2sd: whether `pml_s2sd.s2sd` makes embedder and loss, or the objective is alone.
        options: of `s2sd`, its variant among them; none: the setting that it recommends.
        delay: share of the training after which feature distillation starts, where there is any.
        hidden: size of a hidden layer in the head; None for a linear head.
        nested: the objective is summed over nested prefixes of the embedding.
        transfer: of `study.transfer.TRANSFERS`: a teacher, the objective alone at 1,024, is trained first.
        weight: of the transfer.
        objective: whether the objective trains the student, too.
    """

    s2sd: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    delay: float = 1 / 3
    hidden: int | None = None
    nested: bool = False
    transfer: str | None = None
    weight: float = 1.0
    objective: bool = True


def paper(variant: str, gamma: float = 50.0, delay: float = 1 / 3, **options: Any) -> Way:
    weights = {"distill_weight": gamma, **({"feature_weight": gamma} if variant.startswith("MSDF") else {})}
    sizes = AUX_SIZES[-1:] if variant == "DSD" else AUX_SIZES
    return Way(True, {"variant": variant, "aux_sizes": sizes, **weights, **options}, delay)


RECIPES: dict[str, Way] = {
    "baseline": Way(),
    "S2SD": Way(True),
    **{f"γ = {gamma:g}, apart": Way(True, {"distill_weight": float(gamma)}) for gamma in (0, 200, 800, 12800)},
    "the base head trains the trunk too": Way(True, {"base_gradient": True, "distill_weight": 0.0}),
    "three spaces, 512 1024 2048": Way(True, {"aux_sizes": (512, 1024, 2048), "distill_weight": 0.0}),
    "one space of 2048": Way(True, {"aux_sizes": (2048,), "distill_weight": 0.0}),
    "the large space by an MLP": Way(True, {"aux_head": "mlp", "distill_weight": 0.0}),
}
"""What was tried for the setting that is recommended: `recipe_tried.py`."""
TRANSFER_WEIGHTS = {"RKD": (1, 10, 100), "PKT": (0.1, 1, 10), "relaxed contrastive": (0.1, 1, 10)}
TAUGHT: dict[str, Way] = {
    **{f"{name} alone": Way(transfer=name, objective=False) for name in TRANSFER_WEIGHTS},
    **{
        f"{name}, weight {weight:g}": Way(transfer=name, weight=weight)
        for name, weights in TRANSFER_WEIGHTS.items()
        for weight in weights
    },
}
"""Distillation from a trained teacher in the batch; which weight is compared was chosen by `recipe_tried.py`."""
WAYS: dict[str, Way] = {
    **RECIPES,
    **TAUGHT,
    "DSD": paper("DSD"),
    "MSD": paper("MSD"),
    "MSDF": paper("MSDF"),
    "MSDFA": paper("MSDFA"),
    "heads alone": paper("MSD", 0.0),
    "distillation alone": paper("MSD", aux_gradient=False),
    **{f"γ = {gamma:g}": paper("MSD", gamma, aux_head="linear") for gamma in GAMMAS},
    **{f"delay {name}": paper("MSDF", delay=share, aux_head="linear") for name, share in DELAYS.items()},
    "Matryoshka": Way(nested=True),
    "MLP head": Way(hidden=512),
}
