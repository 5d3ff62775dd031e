"""What the examples train, a baseline or a variant of S2SD, and what is left of it at test time."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from loop import seed_everything
from objectives import OBJECTIVES
from torch import nn
from torch.utils.data import Dataset
from training_data import Data
from trunks import make_trunk

from pml_s2sd import S2SDEmbedder, consolidate, s2sd
from pml_s2sd.embedder import Embedder

VARIANTS = ("baseline", "s2sd", "dsd", "msd", "msdf", "msdfa")
"""The objective alone; the setting that is recommended; the paper's."""


def build(
    settings: argparse.Namespace,
    variant: str,
    classes: int,
    wrap: Callable = lambda objective, miner: (objective, miner),
) -> tuple[nn.Module, nn.Module, nn.Module | None]:
    """(model, loss_func, miner) of one variant; everything that two variants share is initialised alike.

    `wrap` puts the objective and its miner into wrappers of PML's.
    """
    seed_everything(settings.seed)
    trunk, features = make_trunk(settings.trunk, settings.image_size)
    d = settings.embedding_size
    objective, miner = wrap(*OBJECTIVES[settings.objective](d, classes))
    if variant == "baseline":
        return nn.Sequential(trunk, Embedder(features, d)), objective, miner
    if settings.consolidate and d > features:
        raise SystemExit(
            f"--embedding-size {d} is more than the trunk's {features} features, and consolidation adds none: give at "
            f"most {features}, or --no-consolidate"
        )
    if variant == "s2sd":
        embedder, loss_func = s2sd(objective, features, d, miner=miner)
        return nn.Sequential(trunk, embedder), loss_func, None

    options = (
        {"feature_weight": settings.feature_weight, "feature_delay": settings.feature_delay} if "f" in variant else {}
    )
    embedder, loss_func = s2sd(
        objective,
        features,
        d,
        variant,
        aux_sizes=settings.aux_sizes[-1:] if variant == "dsd" else settings.aux_sizes,
        miner=miner,  # each space mines its own pairs
        distill_weight=settings.distill_weight,
        temperature=settings.temperature,
        **options,
    )
    return nn.Sequential(trunk, embedder), loss_func, None


def deploy(model: nn.Module) -> nn.Module:
    """The trained model as it is used: the base head alone, in eval mode."""
    trunk, embedder = model
    return nn.Sequential(trunk, embedder.deploy() if isinstance(embedder, S2SDEmbedder) else embedder).eval()


def consolidated(
    model: nn.Module, data: Data, settings: argparse.Namespace, own: Callable[[Dataset], Dataset] = lambda whole: whole
) -> nn.Module:
    """The trained model as it is used, its base head distilled anew over the whole training set.

    On several processes `own` is what each takes the features of.
    """
    trunk, embedder = model
    features, labels = data.features(trunk, settings, keep_maximum=embedder.aggregate_pooling, own=own)
    return nn.Sequential(trunk, consolidate(embedder, features, labels, seed=settings.seed)).eval()


def from_images(model: nn.Module, front: nn.Module | None) -> nn.Module:
    """A deployed model with what comes before the part that was trained."""
    trunk, head = model
    return model if front is None else nn.Sequential(nn.Sequential(front, trunk), head).eval()
