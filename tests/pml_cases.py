"""How each class that PML exports is made and called: what the compatibility tests go through.

Found by inspection, so that a class of a new PML release fails the tests until it is listed here.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version

import pytest
import torch
from pytorch_metric_learning import losses

PML_VERSION = tuple(int(part) for part in version("pytorch-metric-learning").split(".")[:2])
# What differs between PML's versions, here and in the classes that they export.
DISTRIBUTED_WRAPPER_NEEDS_PROCESSES = PML_VERSION < (2, 6)

CLASSES = 4
BATCH = 12
LABELS = torch.arange(BATCH) // 3


@dataclass
class LossCase:
    """One class of losses.

    make: embedding size -> an instance.
    labels: what it is called with; None for a loss without labels.
    indices_tuple: what it is called with, where it needs it.
    ref: it compares with references.
    bound: the tensor tied to the embedding size and its shape for one.
    """

    make: Callable[[int], torch.nn.Module]
    labels: torch.Tensor | None = field(default_factory=lambda: LABELS)
    indices_tuple: torch.Tensor | None = None
    ref: bool = False
    bound: tuple[str, Callable[[int], tuple[int, ...]]] | None = None

    def arguments(self, ref: object = None) -> dict[str, object]:
        """What it is called with besides the embeddings."""
        given = {"labels": self.labels, "indices_tuple": self.indices_tuple, "ref_emb": ref if self.ref else None}
        return {name: value for name, value in given.items() if value is not None}


def columns(name: str, factor: int = 1) -> tuple[str, Callable[[int], tuple[int, ...]]]:
    return name, lambda d: (d, factor * CLASSES)


def rows(name: str) -> tuple[str, Callable[[int], tuple[int, ...]]]:
    return name, lambda d: (CLASSES, d)


def plain(cls: type[torch.nn.Module], **options: object) -> LossCase:
    return LossCase(lambda d: cls(**options))


def with_classes(name: str, bound: tuple, **options: object) -> LossCase:
    cls = getattr(losses, name)
    return LossCase(lambda d: cls(num_classes=CLASSES, embedding_size=d, **options), bound=bound)


ABSTRACT = ("–", "abstract: for writing classes of one's own")
# What the table of docs/compatibility.md says beyond the tests' outcomes: works, and why not or how.
NOTES = {
    "losses.BaseLossWrapper": ABSTRACT,
    "losses.BaseMetricLossFunction": ABSTRACT,
    "losses.GenericPairLoss": ABSTRACT,
    "losses.EmbeddingRegularizerMixin": ("–", "a mixin, no loss"),
    "losses.WeightRegularizerMixin": ("–", "a mixin, no loss"),
    "losses.CrossBatchMemory": ("yes", "a queue per space; `enqueue_mask` is passed on"),
    "losses.DynamicSoftMarginLoss": (
        "no",
        "PML's own fails at the second backward, also without S2SD; the error says so",
    ),
    "losses.ManifoldLoss": ("yes", "without labels"),
    "losses.MultipleLosses": ("yes", "list and dict, with miners of its own"),
    "losses.SelfSupervisedLoss": ("yes", "`loss_func(embeddings, ref_emb=augmented)`"),
    "losses.VICRegLoss": ("yes", "`loss_func(embeddings, ref_emb=augmented)`"),
    "miners.BaseMiner": ABSTRACT,
    "distances.BaseDistance": ABSTRACT,
    "distances.BatchedDistance": ("as PML has it", "takes S2SDEmbeddings; gives no matrix, so not as `distance=`"),
    "distances.LpDistance": ("yes", "as `distance=`, its negative is the similarity"),
    "distances.SNRDistance": ("yes", "as `distance=`, its negative is the similarity"),
    "reducers.BaseReducer": ABSTRACT,
    "reducers.DoNothingReducer": ("no", "gives no scalar; the error says so"),
    "regularizers.BaseRegularizer": ABSTRACT,
    "trainers.BaseTrainer": ABSTRACT,
    "trainers.CascadedEmbeddings": (
        "no",
        "cuts the embedding into columns, which S2SD's spaces are not; the error says so",
    ),
    "trainers.DeepAdversarialMetricLearning": ("yes", "`metric_loss` and `synth_loss`"),
    "testers.BaseTester": ABSTRACT,
}


def abstract(module: str) -> list[str]:
    """The classes of a PML module that are there to be inherited from."""
    found = [name.split(".") for name, (works, _) in NOTES.items() if works == "–"]
    return [name for of, name in found if of == module]


PLAIN = (
    "AngularLoss CircleLoss ContrastiveLoss FastAPLoss GeneralizedLiftedStructureLoss "
    "InstanceLoss IntraPairVarianceLoss LiftedStructureLoss MarginLoss MultiSimilarityLoss NCALoss NPairsLoss "
    "NTXentLoss PNPLoss RankedListLoss SignalToNoiseRatioContrastiveLoss SmoothAPLoss SupConLoss "
    "ThresholdConsistentMarginLoss TripletMarginLoss TupletMarginLoss"
)
OPTIONS = {"FastAPLoss": {"num_bins": 5}, "RankedListLoss": {"margin": 1.0, "Tn": 1.0}}

LOSS_CASES = {
    **{
        name: plain(getattr(losses, name), **OPTIONS.get(name, {}))
        for name in PLAIN.split()
        if hasattr(losses, name)  # some came after PML 2.3
    },
    "HistogramLoss": plain(losses.HistogramLoss, n_bins=10),
    "ArcFaceLoss": with_classes("ArcFaceLoss", columns("W")),
    "CosFaceLoss": with_classes("CosFaceLoss", columns("W")),
    "LargeMarginSoftmaxLoss": with_classes("LargeMarginSoftmaxLoss", columns("W")),
    "NormalizedSoftmaxLoss": with_classes("NormalizedSoftmaxLoss", columns("W")),
    "SphereFaceLoss": with_classes("SphereFaceLoss", columns("W")),
    "SubCenterArcFaceLoss": with_classes("SubCenterArcFaceLoss", columns("W", factor=3)),
    "ProxyAnchorLoss": with_classes("ProxyAnchorLoss", rows("proxies")),
    "ProxyNCALoss": with_classes("ProxyNCALoss", rows("proxies")),
    "SoftTripleLoss": with_classes("SoftTripleLoss", columns("fc", factor=10)),
    "P2SGradLoss": LossCase(lambda d: losses.P2SGradLoss(d, CLASSES), bound=columns("weight")),
    "ManifoldLoss": LossCase(
        lambda d: losses.ManifoldLoss(d, K=CLASSES), labels=None, indices_tuple=LABELS, bound=rows("proxies")
    ),
    "VICRegLoss": LossCase(lambda d: losses.VICRegLoss(), labels=None, ref=True),
    "CrossBatchMemory": LossCase(
        lambda d: losses.CrossBatchMemory(losses.ContrastiveLoss(), d, memory_size=40),
        bound=("embedding_memory", lambda d: (40, d)),
    ),
    "SelfSupervisedLoss": LossCase(lambda d: losses.SelfSupervisedLoss(losses.NTXentLoss()), labels=None, ref=True),
    "MultipleLosses": LossCase(
        lambda d: losses.MultipleLosses([losses.ContrastiveLoss(), losses.ProxyAnchorLoss(CLASSES, d)], weights=[1, 2])
    ),
}


def each(module: str, names: Iterable[str]) -> list:
    """Parameters of a test, one a class, marked for the table of docs/compatibility.md."""
    return [pytest.param(name, id=name, marks=pytest.mark.pml(module, name)) for name in names]


def exported(module: object) -> dict[str, type]:
    """The public classes of a PML module, by name."""
    return {name: cls for name, cls in inspect.getmembers(module, inspect.isclass) if not name.startswith("_")}
