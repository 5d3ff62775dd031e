"""S2SDLoss: the S2SD objective, a sum of one PML objective per space and the distillation terms."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity
from pytorch_metric_learning.losses import CrossBatchMemory
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch import nn

from .advantage import Advantage
from .balance import Balance
from .checks import (
    check_batch,
    check_embedder,
    check_instance,
    check_int,
    check_judged,
    check_labels,
    check_number,
    check_weight,
)
from .distillation import Space, Teacher, Teaching, mean_divergences
from .distributed import Everyone, several_processes
from .embedder import S2SDEmbedder
from .embeddings import S2SDEmbeddings, base_embeddings
from .objectives import ObjectiveOrFactory, aux_objectives, base_objective
from .shared_cosine import SharedCosine, is_plain_cosine, share
from .similarity import Similarity
from .space import SpaceBatch, objective_value

AUTO_RATIO = 2.0
"""r: with an automatic weight, a distillation term's gradient is twice as long as the objective's."""
AUTO_TEMPERATURE = 0.05
POOR_TEACHERS = (
    'distill_weight="auto" with auxiliary heads of the kind "mlp": linear ones gave larger gains '
    '(docs/study.md); take S2SDEmbedder(…, aux_head="linear", aux_gradient=False), which s2sd() makes'
)


class S2SDLoss(nn.Module):
    """Any PML objective, with simultaneous similarity-based self-distillation (S2SD).

        ½ · [ L(z) + (1/m) Σ_i L(a_i) ]  +  γ · (1/m) Σ_i KL(D^z, D^{a_i})  +  γ_F · KL(D^z, D^φ)

        KL(D^z, D^t) = T² / B · Σ_rows KL( softmax(D^t / T) ‖ softmax(D^z / T) ),  no gradient into t

    z are the base embeddings, a_i the m auxiliary ones, φ the features, D^x the similarities of
    the rows of x with each other, the diagonal included. With m = 0 the bracket is L(z) alone and
    the second term is absent.

    Always the outermost loss; PML's wrappers go inside. In eval mode it is L(z) alone, by PML's own code, and
    takes a plain tensor: a validation loss. As in PML, a CrossBatchMemory takes in what it is given in eval mode
    too, and a `DistributedLossWrapper` gathers, so that all processes have to call it.

    On several processes (torch.distributed) the distillation, and an objective in PML's
    `DistributedLossWrapper`, are computed on the samples of all, which every process's call
    gathers; in training mode all processes have to call it. The average of the gradients over
    processes, which DistributedDataParallel makes, is then the gradient of one process on the
    whole batch; the value is this process's part, and its average that of the whole batch.

    Args:
        loss: L, any PML objective, or a callable ``embedding_size -> objective``. The base space
            uses the instance given; each auxiliary space gets one of its own, rebuilt for its
            size: proxies, class weights and memories included.
        embedder: the `S2SDEmbedder`, only read for its sizes; not registered as a submodule.
        aux_loss: another objective, or callable, for the auxiliary spaces.
        miner: a PML miner; each space mines its own tuples.
        distill_weight: γ ≥ 0. The paper's 50 belongs to a pretrained trunk and a learning rate of
            1e-5; training from scratch wants γ between 1 and 5. ``"auto"``: see below.
        temperature: T > 0; by default 1, as in the paper, or 0.05 where a weight is automatic.
        include_diagonal: whether a sample's similarity to itself counts in the softmax; by default it
            does, as in the paper, and does not where a weight is automatic.
        feature_weight: γ_F ≥ 0, or ``"auto"``.
        feature_delay: feature distillation starts after this many training calls.
        distance: gives D; a PML distance. Where small means similar (`LpDistance`, `SNRDistance`),
            its negative is the similarity.

    With ``distill_weight="auto"`` (or feature_weight, or both) there is no γ to choose: the objective is

        L(z) + (1/m) Σ_i L(a_i) + Σ_i w_i KL(D^z, D^{a_i}),

    and the gradients of L(z) and of the KL term into z are brought to a ratio by `Balance`, the latter twice as long,
    in the one backward pass. A teacher, the features too, is followed only while its space retrieves better
    than the base space, and not, or less than in full, while teachers lead by little: w is `Advantage`'s. The
    embedder for it is `S2SDEmbedder(…, aux_head="linear", aux_gradient=False)`, which `s2sd` makes: linear heads
    gave larger gains where both were measured (docs/study.md), and without their gradient the trunk learns as it
    would from L(z) alone, when no teacher is followed. References get no gradient from a balanced term. Who
    retrieves better is judged by labels, those of references too; without any, as in SelfSupervisedLoss, sample i
    and reference i are the two of one class.

    Inputs (``loss_func(embeddings, labels, indices_tuple=None, ref_emb=None, ref_labels=None)``):
        embeddings: `S2SDEmbeddings` of a batch of B ≥ 1 samples; in eval mode also a tensor (B, d).
        labels: (B,), of any integer dtype; may be left out where the objective does without.
        indices_tuple: tuples of a PML miner, used in every space. Not together with `miner`.
        ref_emb: `S2SDEmbeddings` of R references; each space compares with its own, and D becomes
            query × reference, (B, R), every entry included. With the batch itself, the same object, the
            distillation terms are what they are without references.
            Which pairs the objective forms is PML's: given ref_labels, a sample and its own copy among
            the references are a positive pair.
        ref_labels: (R,).
        Further keyword arguments go to every objective, e.g. CrossBatchMemory's ``enqueue_mask``.

    Returns:
        A scalar.

    Attributes:
        terms: of the last training call, of this process, detached scalars: ``base`` L(z), ``aux`` (1/m) Σ L(a_i),
            ``distill`` (1/m) Σ KL(D^z, D^{a_i}), ``feature`` KL(D^z, D^φ); unweighted, 0 where a
            term is absent, switched off or not started. ``.item()`` them when you log, not before. Where
            a weight is automatic they are Σ w_i KL, 0 while no teacher is followed, and ``distill_weight`` or
            ``feature_weight`` is there too: the weight that was in force in the backward pass, 0 before it.
        calls: the number of training calls so far, part of the state_dict, as are the positions of
            PML's memory queues.
        base_loss, aux_losses: the objective of each space, the latter by the names ``a1`` … ``am``.

    Raises:
        TypeError, ValueError: on arguments or input that cannot be used, naming what was expected
            and what came, before any state changes.

    Source: Roth et al., "S2SD: Simultaneous Similarity-based Self-Distillation for Deep Metric
        Learning", ICML 2021, section 3, arXiv 2009.08348.

    Example:
        >>> import torch
        >>> from pytorch_metric_learning import losses
        >>> from pml_s2sd import S2SDEmbedder, S2SDLoss
        >>> embedder = S2SDEmbedder(in_features=64, embedding_size=8, aux_sizes=(16, 32))
        >>> loss_func = S2SDLoss(losses.MultiSimilarityLoss(), embedder, distill_weight=5.0)
        >>> loss = loss_func(embedder(torch.randn(6, 64)), torch.tensor([0, 0, 1, 1, 2, 2]))
        >>> loss.backward()
        >>> sorted(loss_func.terms)
        ['aux', 'base', 'distill', 'feature']
    """

    calls: torch.Tensor

    def __init__(
        self,
        loss: ObjectiveOrFactory,
        embedder: S2SDEmbedder,
        *,
        aux_loss: ObjectiveOrFactory | None = None,
        miner: nn.Module | None = None,
        distill_weight: float | Literal["auto"] = 50.0,
        temperature: float | None = None,
        include_diagonal: bool | None = None,
        feature_weight: float | Literal["auto"] = 0.0,
        feature_delay: int = 1000,
        distance: BaseDistance | None = None,
    ) -> None:
        super().__init__()
        if isinstance(loss, S2SDLoss) or isinstance(aux_loss, S2SDLoss):
            raise TypeError("loss is an S2SDLoss already; pass the PML objective that is inside it")
        check_embedder(embedder)
        check_weight("distill_weight", distill_weight)
        check_weight("feature_weight", feature_weight)
        automatic = "auto" in (distill_weight, feature_weight)
        temperature = (AUTO_TEMPERATURE if automatic else 1.0) if temperature is None else temperature
        check_number("temperature", temperature, above=0)
        include_diagonal = (not automatic) if include_diagonal is None else include_diagonal
        if not isinstance(include_diagonal, bool):
            raise TypeError(f"include_diagonal must be a bool, got {include_diagonal!r}")
        if distill_weight == "auto" and embedder.aux_sizes and getattr(embedder, "aux_head", None) == "mlp":
            warnings.warn(POOR_TEACHERS, stacklevel=2)
        check_int("feature_delay", feature_delay, at_least=0)
        check_instance("miner", miner, nn.Module, "a pytorch_metric_learning miner")
        check_instance("distance", distance, BaseDistance, "a pytorch_metric_learning distance")

        self.embedding_size = embedder.embedding_size
        self.aux_sizes = tuple(embedder.aux_sizes)
        self.base_loss = base_objective(loss, self.embedding_size)
        self.aux_losses = _by_space(aux_objectives(loss if aux_loss is None else aux_loss, self.aux_sizes))
        self.miner = miner
        self.aux_miners = _by_space([copy.deepcopy(miner) for _ in self.aux_sizes])
        self._shared = [share(*parts) for parts in zip(self.aux_losses.values(), self.aux_miners.values(), strict=True)]
        self.distill_weight = distill_weight if distill_weight == "auto" else float(distill_weight)
        self.temperature = float(temperature)
        self.include_diagonal = include_diagonal
        self.feature_weight = feature_weight if feature_weight == "auto" else float(feature_weight)
        self.balance = Balance(AUTO_RATIO) if automatic else None
        followed = distill_weight == "auto" and len(self.aux_sizes) > 0
        self.advantage = Advantage(len(self.aux_sizes)) if followed else None
        self.feature_advantage = Advantage(teachers=1) if feature_weight == "auto" else None
        self.feature_delay = feature_delay
        self.distance = CosineSimilarity() if distance is None else distance
        self.terms: dict[str, torch.Tensor] = {}
        self._no_references = S2SDEmbeddings(None, (None,) * len(self.aux_sizes), None)  # type: ignore[arg-type]
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(
        self,
        embeddings: S2SDEmbeddings | torch.Tensor,
        labels: torch.Tensor | None = None,
        indices_tuple: tuple[torch.Tensor, ...] | None = None,
        ref_emb: S2SDEmbeddings | torch.Tensor | None = None,
        ref_labels: torch.Tensor | None = None,
        **objective_args: Any,
    ) -> torch.Tensor:
        self._check_input(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        # PML takes a batch that is its own reference from labels and ref_labels being one tensor.
        own_references = ref_labels is labels
        labels = None if labels is None else labels.long()
        ref_labels = labels if own_references else (None if ref_labels is None else ref_labels.long())
        arguments = {"indices_tuple": indices_tuple, "ref_labels": ref_labels, **objective_args}
        arguments = {name: value for name, value in arguments.items() if value is not None}

        if not self.training:
            only = SpaceBatch(base_embeddings(embeddings), labels, base_embeddings(ref_emb), arguments)
            return objective_value(self.base_loss, self.miner, only)

        batch = cast(S2SDEmbeddings, embeddings)
        ref = cast(S2SDEmbeddings, ref_emb) if ref_emb is not None else self._no_references
        everyone = self._gather(batch, labels, ref, arguments) if several_processes() else None
        for_objective, for_distill, for_feature = self._split(batch.embeddings)
        try:
            for shared, a in zip(self._shared, batch.aux, strict=True):
                if shared is not None:
                    shared.expect(a)
            objective_batch = S2SDEmbeddings(for_objective, batch.aux, batch.features)
            itself = ref_emb is embeddings
            objective_ref, compared_with = (objective_batch, self._no_references) if itself else (ref, ref)
            base, aux = self._objective_terms(objective_batch, labels, objective_ref, arguments, everyone)
            distill, feature = self._distillation_terms(
                batch, (for_distill, for_feature), compared_with, everyone, labels, ref_labels
            )
        finally:
            for shared in filter(None, self._shared):
                shared.forget()

        share = 0.5 if self.balance is None else 1.0
        total = base if aux is None else share * (base + aux)
        if distill is not None:
            total = total + _fixed(self.distill_weight) * distill
        if feature is not None:
            total = total + _fixed(self.feature_weight) * feature

        zero = torch.zeros_like(base)
        terms = {"base": base, "aux": aux, "distill": distill, "feature": feature}
        self.terms = {name: zero if term is None else term.detach() for name, term in terms.items()}
        if self.balance is not None:
            names = [n for n, w in (("distill", self.distill_weight), ("feature", self.feature_weight)) if w == "auto"]
            self.terms |= {f"{name}_weight": w for name, w in zip(names, self.balance.weights, strict=True)}
        self.calls += 1
        return total

    def _split(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """z for the objective, for distillation from the auxiliary spaces, and for that from the features."""
        if self.balance is None:
            return z, z, z
        automatic = [weight == "auto" for weight in (self.distill_weight, self.feature_weight)]
        for_objective, balanced = self.balance.split(z, sum(automatic))
        rest = iter(balanced)
        for_distill, for_feature = (next(rest) if auto else z for auto in automatic)
        return for_objective, for_distill, for_feature

    def _objective_terms(
        self,
        batch: S2SDEmbeddings,
        labels: torch.Tensor | None,
        ref: S2SDEmbeddings,
        arguments: dict[str, Any],
        everyone: Everyone | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """L(z) and (1/m) Σ_i L(a_i), the latter None where m = 0."""
        values = []
        embeddings = zip((batch.embeddings, *batch.aux), (ref.embeddings, *ref.aux), strict=True)
        spaces = zip(embeddings, self._losses, self._miners, (None, *self._shared), strict=True)
        for space, ((x, ref_x), loss, miner, shared) in enumerate(spaces):
            own = SpaceBatch(x, labels, ref_x, arguments)
            if everyone is not None and isinstance(loss, DistributedLossWrapper):
                announce = None if shared is None else shared.expect
                values.append(everyone.objective(loss, miner, own, space, announce))
            else:
                values.append(objective_value(loss, miner, own))
        base, *aux = values
        return base, torch.stack(aux).mean() if aux else None

    def _distillation_terms(
        self,
        batch: S2SDEmbeddings,
        students: tuple[torch.Tensor, torch.Tensor],
        ref: S2SDEmbeddings,
        everyone: Everyone | None,
        labels: torch.Tensor | None,
        ref_labels: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Σ_i w_i KL(D^z, D^{a_i}) and KL(D^z, D^φ), each None where it is switched off."""
        from_aux, from_features = self._distills
        if not (from_aux or from_features):
            return None, None
        D = Similarity(self.distance)
        terms = zip(students, (self.distill_weight, self.feature_weight), (from_aux, from_features), strict=True)
        wanted = [(z, weight == "auto") for z, weight, is_wanted in terms if is_wanted]
        if self.balance is None:  # one student for both terms, as their gradients are not balanced apart
            wanted = wanted[:1]
        spaces = []
        for z, balanced in wanted:
            compared, ref_compared, own = _compared(batch, z, ref, everyone, balanced)
            spaces.append(_space(D, compared.embeddings, ref_compared.embeddings, own))
        first_self = None if ref.embeddings is not None else (0 if own is None else own.start)
        if labels is None and self.balance is not None:
            labels = ref_labels = _two_views(batch, everyone)
        weigh = partial(self._weigh, labels, ref_labels, everyone, first_self)
        with torch.no_grad():
            groups = []
            if from_aux:
                in_order = everyone is None or not everyone.own_first
                cosines = self._shared if in_order else [None] * len(self._shared)
                aux = zip(compared.aux, ref_compared.aux, cosines, strict=True)
                teachers = [_aux_teacher(D, a, ref_a, own, shared) for a, ref_a, shared in aux]
                groups.append(Teaching(teachers, weigh(self.advantage, 0)))
            if from_features:
                teacher = _space(D, compared.features, ref_compared.features, own)
                groups.append(Teaching([teacher], weigh(self.feature_advantage, -1)))
        left_out = None if self.include_diagonal else first_self
        if len(spaces) == 1:
            divergences = mean_divergences(D, spaces[0], groups, self.temperature, left_out)
        else:
            divergences = [
                mean_divergences(D, space, [group], self.temperature, left_out)[0]
                for space, group in zip(spaces, groups, strict=True)
            ]
        if everyone is not None:  # this process's part of the mean over all rows
            divergences = [everyone.gathering.share * divergence for divergence in divergences]
        distill = divergences[0] if from_aux else None
        # Multiplied, not branched on: the count stays a tensor, so that nothing waits for a device and
        # torch.compile does not compile anew as it grows.
        feature = divergences[-1] * (self.calls >= self.feature_delay) if from_features else None
        return distill, feature

    def _weigh(
        self,
        labels: torch.Tensor | None,
        ref_labels: torch.Tensor | None,
        everyone: Everyone | None,
        first_self: int | None,
        advantage: Advantage | None,
        term: int,
    ) -> Callable[[Sequence[torch.Tensor]], torch.Tensor] | None:
        """How teachers are weighed: by their advantage, which is also the strength of the balanced term, or all alike
        (None)."""
        if advantage is None or self.balance is None:
            return None
        columns = cast(torch.Tensor, labels if first_self is not None else ref_labels)
        if everyone is not None:
            columns = everyone.compared_labels(columns, of_references=first_self is None)
        strength = self.balance.strengths[term]

        def weigh(similarities: Sequence[torch.Tensor]) -> torch.Tensor:
            weights = advantage(similarities, labels=labels, ref_labels=columns, first_self=first_self)
            strength.copy_(weights.sum())
            return weights

        return weigh

    @property
    def _losses(self) -> list[nn.Module]:
        return [self.base_loss, *self.aux_losses.values()]

    @property
    def _miners(self) -> list[nn.Module | None]:
        return [self.miner, *self.aux_miners.values()]

    @property
    def _distills(self) -> tuple[bool, bool]:
        """Whether the auxiliary spaces, and whether the features, are teachers."""
        return self.distill_weight != 0 and len(self.aux_sizes) > 0, self.feature_weight != 0

    def _gather(
        self, batch: S2SDEmbeddings, labels: torch.Tensor | None, ref: S2SDEmbeddings, arguments: dict[str, Any]
    ) -> Everyone | None:
        """The batch of all processes, where anything is computed on it."""
        aux, features = self._distills
        if not (aux or features or any(isinstance(loss, DistributedLossWrapper) for loss in self._losses)):
            return None
        return Everyone(batch, labels, ref, arguments, self._losses, aux=aux, features=features)

    def _check_input(
        self,
        embeddings: S2SDEmbeddings | torch.Tensor,
        labels: torch.Tensor | None,
        indices_tuple: tuple[torch.Tensor, ...] | None,
        ref_emb: S2SDEmbeddings | torch.Tensor | None,
        ref_labels: torch.Tensor | None,
    ) -> None:
        if self.miner is not None and indices_tuple is not None:
            raise ValueError(
                "indices_tuple was given, but this S2SDLoss has a miner, with which each space mines its own tuples; "
                "give one or the other"
            )
        if self.miner is not None and labels is None:
            raise ValueError("the miner needs labels, got None")
        sizes = (self.embedding_size, self.aux_sizes)
        check_batch("embeddings", embeddings, *sizes, training=self.training)
        check_labels("labels", labels, "embeddings", embeddings)
        if ref_emb is not None:
            check_batch("ref_emb", ref_emb, *sizes, training=self.training)
            check_labels("ref_labels", ref_labels, "ref_emb", ref_emb)
        elif ref_labels is not None:
            raise ValueError("ref_labels was given without ref_emb")
        if self.training and (self.advantage is not None or self.feature_advantage is not None):
            check_judged(embeddings, labels, indices_tuple, ref_emb, ref_labels)

    def get_extra_state(self) -> torch.Tensor:
        """Where the memories of PML's CrossBatchMemory stand, which PML's own state_dict leaves out."""
        return torch.tensor(
            [[memory.queue_idx, memory.has_been_filled] for memory in self._memories], dtype=torch.int64
        )

    def set_extra_state(self, state: torch.Tensor) -> None:
        memories = self._memories
        if not memories or not len(state):  # torch itself names the keys that are missing or too many
            return
        if len(memories) != len(state):
            raise ValueError(
                f"the state has {len(state)} CrossBatchMemory queues, this S2SDLoss has {len(memories)}; make it with "
                "the objective and the embedder that the state was saved with"
            )
        for memory, (queue_idx, has_been_filled) in zip(memories, state.tolist(), strict=True):
            memory.queue_idx, memory.has_been_filled = queue_idx, bool(has_been_filled)

    @property
    def _memories(self) -> list[Any]:
        return [module for module in self.modules() if isinstance(module, CrossBatchMemory)]

    def extra_repr(self) -> str:
        return (
            f"distill_weight={self.distill_weight}, temperature={self.temperature}, "
            f"include_diagonal={self.include_diagonal}, "
            f"feature_weight={self.feature_weight}, feature_delay={self.feature_delay}"
        )


def _fixed(weight: float | str) -> float:
    """The factor of a term in the sum; a balanced term's gradient is scaled on its way back instead."""
    return 1.0 if isinstance(weight, str) else weight


def _two_views(batch: S2SDEmbeddings, everyone: Everyone | None) -> torch.Tensor:
    """Labels where there are none: sample i and reference i are of one class, in the batch of all processes."""
    first = 0 if everyone is None else everyone.gathering.own.start
    return first + torch.arange(len(batch.embeddings), device=batch.embeddings.device)


def _compared(
    batch: S2SDEmbeddings, z: torch.Tensor, ref: S2SDEmbeddings, everyone: Everyone | None, balanced: bool
) -> tuple[S2SDEmbeddings, S2SDEmbeddings, slice | None]:
    """What distillation compares: samples, references (or none), and which of the samples are this process's."""
    if balanced and ref.embeddings is not None:
        ref = S2SDEmbeddings(ref.embeddings.detach(), ref.aux, ref.features)
    batch = S2SDEmbeddings(z, batch.aux, batch.features)
    return (batch, ref, None) if everyone is None else everyone.compared(batch, ref)


def _by_space(modules: Sequence[nn.Module | None]) -> nn.ModuleDict:
    """The auxiliary spaces' modules, a1 … am; named, as PML's record-keeper turns names into those of tables."""
    named = nn.ModuleDict()
    for i, module in enumerate(modules, start=1):
        named.add_module(f"a{i}", module)
    return named


def _aux_teacher(
    D: Similarity, a: torch.Tensor, ref: torch.Tensor | None, own: slice | None, shared: SharedCosine | None
) -> Teacher:
    """An auxiliary space as a teacher; its similarities, where its objective has asked for the same ones."""
    known = shared.known if shared is not None and ref is None else None
    if known is not None and len(known) == len(a) and is_plain_cosine(D.distance):
        return known if own is None else known[own]
    return _space(D, a, ref, own)


def _space(D: Similarity, x: torch.Tensor, ref: torch.Tensor | None, own: slice | None) -> Space:
    """A teacher or the student: the rows of x (all, or `own` of them) compared with ref, or with all of x."""
    x = D.prepare(x)
    return Space(x if own is None else x[own], x if ref is None else D.prepare(ref))
