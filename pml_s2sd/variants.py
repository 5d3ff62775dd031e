"""Variants: the paper's names DSD, MSD, MSDF, MSDFA -> an embedder and a loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from pytorch_metric_learning.distances import BaseDistance
from torch import nn

from ._argument_checks import check_choice
from .embedder import S2SDEmbedder
from .loss import S2SDLoss
from .objectives import ObjectiveOrFactory

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


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


def s2sd(
    loss: ObjectiveOrFactory,
    in_features: int,
    embedding_size: int,
    variant: Literal["DSD", "MSD", "MSDF", "MSDFA"] = "MSDF",
    *,
    aux_sizes: Sequence[int] | None = None,
    head: nn.Module | None = None,
    aux_head: Literal["mlp", "linear"] | None = None,
    aux_gradient: bool | None = None,
    aux_loss: ObjectiveOrFactory | None = None,
    miner: nn.Module | None = None,
    distill_weight: float | Literal["auto"] = 50.0,
    temperature: float | None = None,
    include_diagonal: bool | None = None,
    feature_weight: float | None = None,
    feature_delay: int = 1000,
    distance: BaseDistance | None = None,
    process_group: ProcessGroup | DeviceMesh | None = None,
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
        aux_sizes: by default the paper's, 2048 (DSD) or 512, 1024, 1536 and 2048.
        head, aux_head, aux_gradient: as `S2SDEmbedder` has them; with an automatic weight, by default, linear heads
            that leave the trunk alone, as measured with MSD (docs/study.md).
        feature_weight: γ_F; by default the paper's 50 in MSDF and MSDFA, and 0 with an automatic weight, beside which
            features changed nothing.
        aux_loss, miner, distill_weight, temperature, include_diagonal, feature_delay, distance,
            process_group: as `S2SDLoss` has them.

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
    name = variant.upper() if isinstance(variant, str) else variant
    check_choice("variant", name, VARIANTS)
    chosen = VARIANTS[name]
    aux_sizes = chosen.aux_sizes if aux_sizes is None else aux_sizes
    if name == "DSD" and not isinstance(aux_sizes, int) and len(aux_sizes) != 1:
        raise ValueError(f"DSD has one auxiliary space, got aux_sizes={tuple(aux_sizes)}; choose MSD for several")
    if feature_weight and not chosen.feature_weight:
        raise ValueError(
            f"{name} has no feature distillation, got feature_weight={feature_weight}; choose MSDF or MSDFA"
        )
    automatic = distill_weight == "auto"
    if feature_weight is None:
        feature_weight = 0.0 if automatic else chosen.feature_weight
    if aux_head is None:
        aux_head = "linear" if automatic else "mlp"
    if aux_gradient is None:
        aux_gradient = not automatic
    embedder = S2SDEmbedder(
        in_features,
        embedding_size,
        aux_sizes,
        head=head,
        aggregate_pooling=chosen.aggregate_pooling,
        aux_head=aux_head,
        aux_gradient=aux_gradient,
    )
    loss_func = S2SDLoss(
        loss,
        embedder,
        aux_loss=aux_loss,
        miner=miner,
        distill_weight=distill_weight,
        temperature=temperature,
        include_diagonal=include_diagonal,
        feature_weight=feature_weight,
        feature_delay=feature_delay,
        distance=distance,
        process_group=process_group,
    )
    return embedder, loss_func
