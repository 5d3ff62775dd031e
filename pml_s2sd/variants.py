"""Variants: the paper's names DSD, MSD, MSDF, MSDFA -> an embedder and a loss."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from .embedder import S2SDEmbedder
from .loss import S2SDLoss
from .objectives import ObjectiveOrFactory


class Variant(NamedTuple):
    """One row of the paper's list of variants."""

    aux_sizes: tuple[int, ...]
    feature_weight: float
    aggregate_pooling: bool


VARIANTS = {
    "DSD": Variant((2048,), 0.0, False),
    "MSD": Variant((512, 1024, 1536, 2048), 0.0, False),
    "MSDF": Variant((512, 1024, 1536, 2048), 50.0, False),
    "MSDFA": Variant((512, 1024, 1536, 2048), 50.0, True),
}


EMBEDDER_OPTIONS = ("aux_sizes", "head", "aux_head", "aux_gradient")


def s2sd(
    loss: ObjectiveOrFactory,
    in_features: int,
    embedding_size: int,
    variant: str = "MSDF",
    **options: Any,
) -> tuple[S2SDEmbedder, S2SDLoss]:
    """The embedder and the loss of one of the paper's variants.

    | variant | auxiliary spaces | feature distillation | pooling under the auxiliary heads |
    | ------- | ---------------- | -------------------- | --------------------------------- |
    | DSD     | one              | no                   | average                           |
    | MSD     | several          | no                   | average                           |
    | MSDF    | several          | yes                  | average                           |
    | MSDFA   | several          | yes                  | average + max; needs feature maps |

    Args:
        loss: any PML objective made for `embedding_size`, or a callable ``embedding_size -> objective``.
        in_features: F, the number of features (channels) of the trunk.
        embedding_size: d, the size of the embeddings that are kept.
        variant: its name, in any case.
        options: go to `S2SDEmbedder` (``aux_sizes``, ``head``, ``aux_head``, ``aux_gradient``) and
            `S2SDLoss` (all others); see there. Defaults are the authors': γ = γ_F = 50, T = 1. With
            ``distill_weight="auto"``: T = 0.05 without the diagonal and linear heads that leave the trunk
            alone, as measured with MSD (docs/study.md); γ_F is automatic too in MSDF and MSDFA.

    Returns:
        ``(embedder, loss_func)``: a `S2SDEmbedder` and the `S2SDLoss` made for it.

    Raises:
        TypeError, ValueError: on an unknown variant or option, or one that contradicts the variant.

    Source: Roth et al., ICML 2021, section 3.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning import losses
        >>> from pml_s2sd import s2sd
        >>> embedder, loss_func = s2sd(losses.MultiSimilarityLoss(), in_features=64, embedding_size=8)
        >>> embedder.aux_sizes, loss_func.feature_weight
        ((512, 1024, 1536, 2048), 50.0)
        >>> loss_func(embedder(torch.randn(4, 64)), torch.tensor([0, 0, 1, 1])).shape
        torch.Size([])
    """
    chosen = VARIANTS.get(variant.upper()) if isinstance(variant, str) else None
    if chosen is None:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    embedder_options: dict[str, Any] = {name: options.pop(name) for name in EMBEDDER_OPTIONS if name in options}
    _check_options(variant.upper(), chosen, embedder_options, options)
    embedder_options.setdefault("aux_sizes", chosen.aux_sizes)
    automatic = chosen.feature_weight and options.get("distill_weight") == "auto"
    options.setdefault("feature_weight", "auto" if automatic else chosen.feature_weight)
    if "auto" in (options.get("distill_weight"), options["feature_weight"]):
        embedder_options = {"aux_head": "linear", "aux_gradient": False, **embedder_options}
    embedder = S2SDEmbedder(in_features, embedding_size, aggregate_pooling=chosen.aggregate_pooling, **embedder_options)
    return embedder, S2SDLoss(loss, embedder, **options)


def _check_options(name: str, variant: Variant, embedder_options: dict[str, Any], loss_options: dict[str, Any]) -> None:
    if "aggregate_pooling" in loss_options:
        raise TypeError("aggregate_pooling is decided by the variant: MSDFA has it, the others do not")
    accepted = [p for p in inspect.signature(S2SDLoss).parameters if p not in ("loss", "embedder")]
    for option in loss_options:
        if option not in accepted:
            raise TypeError(
                f"unknown option {option!r}; expected one of {', '.join(EMBEDDER_OPTIONS)}, {', '.join(accepted)}"
            )
    if not variant.feature_weight and loss_options.get("feature_weight"):
        raise ValueError(
            f"{name} has no feature distillation, got feature_weight={loss_options['feature_weight']}; "
            "choose MSDF or MSDFA"
        )
    aux_sizes = embedder_options.get("aux_sizes", variant.aux_sizes)
    if name == "DSD" and not isinstance(aux_sizes, int) and len(aux_sizes) != 1:
        raise ValueError(f"DSD has one auxiliary space, got aux_sizes={tuple(aux_sizes)}; choose MSD for several")
