"""The setting that we recommend, and the paper's variants DSD, MSD, MSDF, MSDFA -> an embedder and a loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from pytorch_metric_learning.distances import BaseDistance
from torch import nn

from ._argument_checks import check_choice, check_int
from ._trunk_output import Field, Tokens
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


PAPER_WEIGHT = 50.0
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
    variant: Literal["DSD", "MSD", "MSDF", "MSDFA"] | None = None,
    *,
    aux_sizes: Sequence[int] | None = None,
    head: nn.Module | None = None,
    aux_head: Literal["mlp", "linear"] | None = None,
    aux_gradient: bool = True,
    base_gradient: bool | None = None,
    field: Field | None = None,
    tokens: Tokens | None = None,
    aux_loss: ObjectiveOrFactory | None = None,
    miner: nn.Module | None = None,
    distill_weight: float | None = None,
    temperature: float | None = None,
    include_diagonal: bool | None = None,
    feature_weight: float | None = None,
    feature_delay: int = 1000,
    distance: BaseDistance | None = None,
    columns: int | None = None,
    process_group: ProcessGroup | DeviceMesh | None = None,
) -> tuple[S2SDEmbedder, S2SDLoss]:
    """The embedder and the loss: of the setting that we recommend, or of one of the paper's variants.

    Recommended is one larger space with a linear head, in which the objective trains the trunk; the base head learns on
    features that it does not change, from the objective and from the larger space. After training `consolidate` distils
    it anew over the whole training set, and most of the gain is there.

    | variant | auxiliary spaces | their heads | feature distillation | pooling under them | γ, T |
    | ------- | ---------------- | ----------- | -------------------- | ------------------ | ---- |
    | None    | one, which alone trains the trunk | linear | no | average | 3200, 0.05, without the diagonal |
    | DSD     | one              | MLP | no  | average | 50, 1 |
    | MSD     | several          | MLP | no  | average | 50, 1 |
    | MSDF    | several          | MLP | yes | average | 50, 1 |
    | MSDFA   | several          | MLP | yes | average + max; needs feature maps | 50, 1 |

    Args:
        loss: any PML objective made for `embedding_size`, or a callable ``embedding_size -> objective``.
        in_features: F, the number of features (channels) of the trunk; `count_features` finds it.
        embedding_size: d, the size of the embeddings that are kept.
        variant: the paper's name, in any case; None: the setting that we recommend.
        aux_sizes: by default one of 1024, or of 4 d where that is more; the paper's 2048 (DSD) or 512, 1024, 1536 and
            2048.
        head, aux_head, aux_gradient, base_gradient, field, tokens: as `S2SDEmbedder` has them.
        distill_weight, temperature, include_diagonal, feature_weight: as `S2SDLoss` has them; by default as above, γ_F
            the paper's 50 in MSDF and MSDFA.
        aux_loss, miner, feature_delay, distance, columns, process_group: as `S2SDLoss` has them.

    Returns:
        ``(embedder, loss_func)``: a `S2SDEmbedder` and the `S2SDLoss` made for it.

    Raises:
        TypeError, ValueError: on an unknown variant or option, or one that contradicts the variant.

    Source: Roth et al., ICML 2021, section 3, for the variants; docs/study.md for the other setting.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning import losses
        >>> from pml_s2sd import s2sd
        >>> embedder, loss_func = s2sd(losses.MultiSimilarityLoss(), in_features=64, embedding_size=8)
        >>> embedder.aux_sizes, embedder.base_gradient
        ((1024,), False)
        >>> loss_func(embedder(torch.randn(4, 64)), torch.tensor([0, 0, 1, 1])).shape
        torch.Size([])
        >>> embedder, loss_func = s2sd(losses.MultiSimilarityLoss(), 64, 8, "MSDF")  # as in the paper
        >>> embedder.aux_sizes, loss_func.distill_weight
        ((512, 1024, 1536, 2048), 50.0)
    """
    name = _checked_name(variant)
    if name is None:
        check_int("embedding_size", embedding_size, at_least=1)
        chosen = Variant((max(1024, 4 * embedding_size),), 0.0, aggregate_pooling=False)
    else:
        chosen = VARIANTS[name]
    aux_sizes = chosen.aux_sizes if aux_sizes is None else aux_sizes
    if name == "DSD" and not isinstance(aux_sizes, int) and len(aux_sizes) != 1:
        raise ValueError(f"DSD has one auxiliary space, got aux_sizes={tuple(aux_sizes)}; choose MSD for several")
    if name is not None and feature_weight and not chosen.feature_weight:
        raise ValueError(
            f"{name} has no feature distillation, got feature_weight={feature_weight}; choose MSDF or MSDFA"
        )
    if base_gradient is None:
        base_gradient = name is not None
    embedder = S2SDEmbedder(
        in_features,
        embedding_size,
        aux_sizes,
        head=head,
        aggregate_pooling=chosen.aggregate_pooling,
        aux_head=aux_head or ("linear" if name is None else "mlp"),
        aux_gradient=aux_gradient,
        base_gradient=base_gradient,
        field=field,
        tokens=tokens,
    )
    loss_func = S2SDLoss(
        loss,
        embedder,
        aux_loss=aux_loss,
        miner=miner,
        distill_weight=PAPER_WEIGHT if distill_weight is None and name is not None else distill_weight,
        temperature=temperature,
        include_diagonal=include_diagonal,
        feature_weight=chosen.feature_weight if feature_weight is None else feature_weight,
        feature_delay=feature_delay,
        distance=distance,
        columns=columns,
        process_group=process_group,
    )
    return embedder, loss_func


def _checked_name(variant: str | None) -> str | None:
    """The variant's name in capitals; None for none."""
    if variant is None:
        return None
    name = variant.upper() if isinstance(variant, str) else variant
    check_choice("variant", name, VARIANTS)
    return name
