"""The ways of training that the study compares, by name."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

AUX_SIZES = (128, 256, 512, 1024)
"""4 to 32 times d = 32, as the paper's 512 to 2048 are 4 to 16 times its 128."""
LARGE = 128
"""The size at which what is cut down to d afterwards is trained."""


@dataclass(frozen=True)
class Way:
    """How a row of the study is trained.

    Args:
        variant: of `pml_s2sd.s2sd`, or "" for the objective alone.
        options: of `s2sd`.
        delay: share of the training after which feature distillation starts.
        hidden: size of a hidden layer in the head; None for a linear head.
        cut: embeddings of size `LARGE` are trained, and cut to d: "pca", or "matryoshka", which keeps the first d and
            trains with the objective summed over nested prefixes.
        longer: epochs are multiplied by this, in the setting named.
    """

    variant: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    delay: float = 1 / 3
    hidden: int | None = None
    cut: str = ""
    longer: dict[str, float] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """What differs from the objective alone, fit for JSON: a row is measured again when this has changed."""
        default = asdict(Way())
        return {
            name: _as_json(value) for name, value in asdict(self).items() if name == "variant" or value != default[name]
        }


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_json(part) for name, part in value.items()}
    return list(value) if isinstance(value, tuple) else value


def paper(variant: str, gamma: float = 50.0, **options: Any) -> Way:
    weights = {"distill_weight": gamma, **({"feature_weight": gamma} if variant.startswith("MSDF") else {})}
    sizes = AUX_SIZES[-1:] if variant == "DSD" else AUX_SIZES
    delay = {"delay": options.pop("delay")} if "delay" in options else {}
    return Way(variant, {"aux_sizes": sizes, **weights, **options}, **delay)


def auto(variant: str = "MSD", **options: Any) -> Way:
    return Way(variant, {"aux_sizes": AUX_SIZES, "distill_weight": "auto", **options})


TEMPERATURES = {
    **{f"T = {T}": {"temperature": T} for T in (0.03, 0.1, 0.2, 1.0)},  # 0.05 is the automatic weight's own
    **{f"T = {T}, diagonal": {"temperature": T, "include_diagonal": True} for T in (0.05, 0.2, 1.0)},
}
GAMMAS = (0.5, 1.0, 5.0, 10.0, 50.0, 100.0)
SPACES = ((128,), (1024,), (128, 1024), (512, 1024, 1536, 2048))
DELAYS = {"0": 0.0, "1/3": 1 / 3, "2/3": 2 / 3}

WAYS: dict[str, Way] = {
    "baseline": Way(),
    "DSD": paper("DSD"),
    "MSD": paper("MSD"),
    "MSDF": paper("MSDF"),
    "MSDFA": paper("MSDFA"),
    "auto": auto(),
    "heads alone": paper("MSD", 0.0),
    "distillation alone": paper("MSD", aux_gradient=False),
    "MLP heads": auto(aux_head="mlp"),
    "heads train the trunk": auto(aux_gradient=True),
    **{name: auto(**options) for name, options in TEMPERATURES.items()},
    **{f"γ = {gamma:g}": paper("MSD", gamma, aux_head="linear") for gamma in GAMMAS},
    **{f"sizes {' '.join(map(str, sizes))}": auto(aux_sizes=sizes) for sizes in SPACES},
    **{f"delay {name}": paper("MSDF", aux_head="linear", delay=share) for name, share in DELAYS.items()},
    "Matryoshka": Way(cut="matryoshka"),
    "PCA": Way(cut="pca"),
    "MLP head": Way(hidden=512),
    "longer": Way(longer={"scratch": 1.5, "frozen": 5.0, "tuned": 1.4}),
}
