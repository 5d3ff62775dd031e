"""S2SDLoss: the S2SD objective, a sum of one PML objective per space and the distillation terms."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity
from pytorch_metric_learning.losses import CrossBatchMemory
from torch import nn

from ._argument_checks import check_embedder, check_instance, check_int, check_number
from ._call import Call, of_space
from ._drawn_columns import with_drawn_columns
from ._kept_state import keep
from ._live_objectives import LiveObjectives
from ._one_process import OneProcess
from ._shared_similarities import SharedSimilarities, is_plain_cosine
from ._similarity import Similarity
from .distillation import Teacher, mean_divergences
from .distributed import Processes
from .embedder import S2SDEmbedder
from .embeddings import S2SDEmbeddings
from .objectives import ObjectiveOrFactory, aux_objectives, base_objective, is_distributed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

APART_TEMPERATURE = 0.05
APART_WEIGHT = 3200.0
"""T and γ where the base head has the features to itself. γ is eight times the 1 / T² that undoes the KL's T²: so much
that the distillation leads also beside objectives with large gradients, such as ArcFace."""

IN_EVAL_MODE = (
    "this S2SDLoss is in eval mode, where it is the base objective alone, while the embedder is in training mode: "
    "auxiliary heads learn nothing and nothing is distilled; call loss_func.train() beside model.train(), or, for a "
    "validation loss, compute the embeddings with model.eval()"
)
WITHOUT_GRADIENT = (
    "no embedding in this training call requires a gradient: neither trunk nor heads will learn from it; if the "
    "model is checkpointed, use checkpoint(…, use_reentrant=False), as reentrant checkpointing loses the gradient of "
    "what is not a plain tensor; to measure only, call under torch.no_grad()"
)


class S2SDLoss(nn.Module):
    """Any PML objective, with simultaneous similarity-based self-distillation (S2SD).

        ½ · [ L(z) + (1/m) Σ_i L(a_i) ]  +  γ · (1/m) Σ_i KL(D^z, D^{a_i})  +  γ_F · KL(D^z, D^φ)

        KL(D^z, D^t) = T² / B · Σ_rows KL( softmax(D^t / T) ‖ softmax(D^z / T) ),  no gradient into t

    z are the base embeddings, a_i the m auxiliary ones, φ the features. D^x holds the similarities of the rows
    of x. With m = 0 the bracket is L(z) alone, and there is no second term. With ``base_gradient=False`` the base
    head does not change the features, so L(z) and the L(a_i) train nothing in common. The ½ is then left out, and the
    trunk is trained as by the objective alone at the larger size.

    This is always the outermost loss; PML's wrappers go inside.

    In eval mode it is a validation loss: L(z) alone, by PML's own code, and it takes a plain tensor. As in PML, a
    CrossBatchMemory takes in samples in eval mode too. A `DistributedLossWrapper` gathers in eval mode too, so all
    processes have to call it.

    On several processes (torch.distributed) the distillation is computed on the samples of all. So is an objective in
    PML's `DistributedLossWrapper`. In training mode all processes have to call the loss. DistributedDataParallel
    averages their gradients; the average equals the gradient of one process on the whole batch. The value is this
    process's part: the average of the parts is the value on the whole batch.

    Args:
        loss: L, any PML objective, or a callable ``embedding_size -> objective``. The base space
            uses the instance given; each auxiliary space gets one of its own, rebuilt for its
            size: proxies, class weights and memories included.
        embedder: the `S2SDEmbedder`, only read for its sizes; not registered as a submodule.
        aux_loss: another objective, or callable, for the auxiliary spaces.
        miner: a PML miner; each space mines its own tuples.
        distill_weight: γ ≥ 0; 3200 unless given, where ``base_gradient=False``. Otherwise it has to be given, as no
            weight fits all. The paper's 50 belongs to a pretrained trunk and a learning rate of 1e-5; training from
            scratch wants 1 to 5.
        temperature: T > 0; 1 unless given, as in the paper, and 0.05 where ``base_gradient=False``.
        include_diagonal: whether a sample's similarity to itself counts in the softmax, or to its own copy among the
            references. True unless given, as in the paper, and False where ``base_gradient=False``.
        feature_weight: γ_F ≥ 0.
        feature_delay: feature distillation starts after this many training calls of the loss. Where a step of the
            optimizer takes the gradients of k batches, that is k calls a step.
        distance: gives D; a PML distance. Where small means similar (`LpDistance`, `SNRDistance`),
            its negative is the similarity.
        columns: c ≥ 2: the distillation compares the rows with c columns, drawn anew at every call, the same for all
            spaces. None: with all. Where there are no more than c, all are taken. Time then grows with B · c, not B²;
            docs/performance.md has the error. Torch's generator of the device draws. A row's own column is kept, with
            the weight that it has among all, or left out, as `include_diagonal` says. Each of several processes draws
            its own columns from those of all.
        process_group: the processes whose batches make up the global batch. Needed where there is more than data
            parallelism (tensor or pipeline parallelism, a model on some of the processes). A ProcessGroup, or the
            one-dimensional DeviceMesh ``mesh["dp"]``. None: all processes.

    Inputs, of ``loss_func(embeddings, labels, indices_tuple=None, ref_emb=None, ref_labels=None)``:

    - embeddings: `S2SDEmbeddings` of a batch of B ≥ 1 samples; in eval mode also a tensor (B, d).
    - labels: (B,), of any integer dtype; may be left out where the objective does without.
    - indices_tuple: tuples of a PML miner, used in every space. Not together with `miner`.
    - ref_emb: `S2SDEmbeddings` of R references. Each space compares with its own, and D becomes query × reference,
      (B, R). Where it is the batch itself, the same object, the distillation is what it is without references. PML
      decides which pairs the objective forms: given ref_labels, a sample and its own copy are a positive pair.
    - ref_labels: (R,).
    - Further keyword arguments go to every objective, such as CrossBatchMemory's ``enqueue_mask``.

    Returns:
        A scalar.

    Attributes:
        terms: of the last training call, of this process, detached scalars: ``base`` L(z), ``aux`` (1/m) Σ L(a_i),
            ``distill`` (1/m) Σ KL(D^z, D^{a_i}), ``feature`` KL(D^z, D^φ); unweighted, 0 where a
            term is absent, switched off or not started. Nothing waits for a device before `terms_as_numbers`.
        calls: the number of training calls so far, part of the state_dict, as are the positions of
            PML's memory queues.
        base_loss: the objective of the base space. `change_objectives` changes those of all spaces while training.
        aux_losses: the objectives of the auxiliary spaces, by the names ``a1`` … ``am``.
        miner: a new one may be set at any time; each space gets its own.
            A margin on a schedule may be set on the base space's objective or miner alone. It reaches every space with
            the next call, and so does `reset_queue()` of a CrossBatchMemory.
        distill_weight: may be set to another number at any time.
        feature_weight: likewise.

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
        distill_weight: float | None = None,
        temperature: float | None = None,
        include_diagonal: bool | None = None,
        feature_weight: float = 0.0,
        feature_delay: int = 1000,
        distance: BaseDistance | None = None,
        columns: int | None = None,
        process_group: ProcessGroup | DeviceMesh | None = None,
    ) -> None:
        super().__init__()
        if isinstance(loss, S2SDLoss) or isinstance(aux_loss, S2SDLoss):
            raise TypeError("loss is an S2SDLoss already; pass the PML objective that is inside it")
        check_embedder(embedder)
        apart = not getattr(embedder, "base_gradient", True)
        temperature = (APART_TEMPERATURE if apart else 1.0) if temperature is None else temperature
        check_number("temperature", temperature, above=0)
        include_diagonal = (not apart) if include_diagonal is None else include_diagonal
        if not isinstance(include_diagonal, bool):
            raise TypeError(f"include_diagonal must be a bool, got {include_diagonal!r}")
        if distill_weight is None:
            distill_weight = _default_weight(apart, len(embedder.aux_sizes))
        self.distill_weight, self.feature_weight = distill_weight, feature_weight
        check_int("feature_delay", feature_delay, at_least=0)
        check_instance("miner", miner, nn.Module, "a pytorch_metric_learning miner")
        check_instance("distance", distance, BaseDistance, "a pytorch_metric_learning distance")
        if columns is not None:
            check_int("columns", columns, at_least=2)

        self.embedding_size = embedder.embedding_size
        self.aux_sizes = tuple(embedder.aux_sizes)
        self._objective_share = 1.0 if apart else 0.5
        self.base_loss = base_objective(loss, self.embedding_size)
        self.aux_losses = _by_space(aux_objectives(loss if aux_loss is None else aux_loss, self.aux_sizes))
        self.miner = miner
        self.aux_miners = _by_space([copy.deepcopy(miner) for _ in self.aux_sizes])
        self._prepare_spaces()
        self.temperature = float(temperature)
        self.include_diagonal = include_diagonal
        self.feature_delay = feature_delay
        self.distance = CosineSimilarity() if distance is None else distance
        self.columns = columns
        self._processes = Processes(process_group)
        self.terms: dict[str, torch.Tensor] = {}
        self._said: set[str] = set()
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
        call = self._checked(embeddings, labels, indices_tuple, ref_emb, ref_labels, objective_args)
        self._warn_of_silence(embeddings)
        step = self._step(call)
        if not self.training:
            return step.objective(0, step.rows.embeddings, self.base_loss, self.miner)

        self._carry_over()
        with self._shared.for_one_step():
            objectives = step.objectives(self._losses, self._miners)
            kl = self._distillation_terms(step)
        base, *others = step.values_of_all(objectives)
        aux = torch.stack(others).mean() if others else None
        total = base if aux is None else self._objective_share * (base + aux)
        if "distill" in kl:
            total = total + self.distill_weight * kl["distill"]
        if "feature" in kl:
            total = total + self.feature_weight * kl["feature"]

        values = {"base": base, "aux": aux, "distill": kl.get("distill"), "feature": kl.get("feature")}
        self.terms = {name: base.new_zeros(()) if term is None else term.detach() for name, term in values.items()}
        for live in self._live:
            live.remember()
        if torch.is_grad_enabled():
            keep(self.calls, self.calls + 1)
        return total

    def _distillation_terms(self, step: OneProcess) -> dict[str, torch.Tensor]:
        """``distill`` (1/m) Σ_i KL(D^z, D^{a_i}) and ``feature`` KL(D^z, D^φ), without those that are switched off."""
        if not any(self._distills):
            return {}
        D = Similarity(self.distance)
        left_out = None if self.include_diagonal else step.self_columns()
        if self.columns is not None:
            D, step, left_out = with_drawn_columns(D, step, left_out, self.columns, self.temperature)
        with torch.no_grad():
            teachers = self._teachers(D, step)
        z = step.rows.embeddings
        student = D.comparison(z, step.student_columns(z))
        values = mean_divergences(D, student, list(teachers.values()), self.temperature, left_out)
        kl = {term: step.part_of_mean(value) for term, value in zip(teachers, values, strict=True)}
        if "feature" in kl:
            # Multiplied, not branched on: the count stays a tensor, so that nothing waits for a device and
            # torch.compile does not compile anew as it grows.
            kl["feature"] = kl["feature"] * (self.calls >= self.feature_delay)
        return kl

    def _teachers(self, D: Similarity, step: OneProcess) -> dict[str, list[Teacher]]:
        """Those of each term."""
        teachers: dict[str, list[Teacher]] = {}
        from_aux, from_features = self._distills
        if from_aux:
            teachers["distill"] = [self._aux_teacher(D, step, i) for i, _ in enumerate(step.rows.aux, start=1)]
        if from_features:
            teachers["feature"] = [D.comparison(step.rows.features, step.columns.features)]
        return teachers

    def _aux_teacher(self, D: Similarity, step: OneProcess, space: int) -> Teacher:
        """An auxiliary space as a teacher; its similarities, where its objective has asked for the same ones."""
        known = step.known_cosines(space, self._shared) if is_plain_cosine(D.distance) else None
        return D.comparison(of_space(step.rows, space), of_space(step.columns, space)) if known is None else known

    def _step(self, call: Call) -> OneProcess:
        """What is compared in this step: on several processes, with the samples of all."""
        if not self._processes.several:
            return OneProcess(call)
        aux, features = self._distills if self.training else (False, False)
        objectives = self._losses if self.training else [self.base_loss]
        if not (aux or features or any(map(is_distributed, objectives))):
            return OneProcess(call)
        from ._many_processes import ManyProcesses  # it loads torch's compiler

        return ManyProcesses(call, self._processes.group, objectives, aux=aux, features=features)

    def _checked(self, embeddings: Any, labels: Any, indices_tuple: Any, *references: Any) -> Call:
        if self.miner is not None and indices_tuple is not None:
            raise ValueError(
                "indices_tuple was given, but this S2SDLoss has a miner, with which each space mines its own tuples; "
                "give one or the other"
            )
        if self.miner is not None and labels is None:
            raise ValueError("the miner needs labels, got None")
        sizes = (self.embedding_size, self.aux_sizes)
        return Call.checked(embeddings, labels, indices_tuple, *references, sizes=sizes, training=self.training)

    def _warn_of_silence(self, embeddings: Any) -> None:
        """Say once what trains less than its user believes."""
        if not (torch.is_grad_enabled() and isinstance(embeddings, S2SDEmbeddings)):
            return
        has_gradient = embeddings.embeddings.requires_grad or any(a.requires_grad for a in embeddings.aux)
        if has_gradient and not self.training:
            self._say_once(IN_EVAL_MODE)
        elif self.training and not has_gradient:
            self._say_once(WITHOUT_GRADIENT)

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            warnings.warn(message, stacklevel=4)

    @property
    def distill_weight(self) -> float:
        return self._distill_weight

    @distill_weight.setter
    def distill_weight(self, weight: float) -> None:
        check_number("distill_weight", weight, at_least=0)
        self._distill_weight = float(weight)

    @property
    def feature_weight(self) -> float:
        return self._feature_weight

    @feature_weight.setter
    def feature_weight(self, weight: float) -> None:
        check_number("feature_weight", weight, at_least=0)
        self._feature_weight = float(weight)

    @property
    def _distills(self) -> tuple[bool, bool]:
        """Whether the auxiliary spaces, and whether the features, are teachers."""
        return self.distill_weight != 0 and len(self.aux_sizes) > 0, self.feature_weight != 0

    @property
    def _losses(self) -> list[nn.Module]:
        return [self.base_loss, *self.aux_losses.values()]

    @property
    def _miners(self) -> list[nn.Module | None]:
        return [self.miner, *self.aux_miners.values()]

    def terms_as_numbers(self) -> dict[str, float]:
        """`terms` as Python's numbers, for a logger or JSON; waits for the device, once."""
        values = torch.stack([term.double() for term in self.terms.values()]).tolist() if self.terms else []
        return dict(zip(self.terms, values, strict=True))

    def change_objectives(self, change: Callable[[Any, int], nn.Module | None]) -> None:
        """Change the objective of every space while training.

        Args:
            change: called with each space's objective and embedding size, base first. It changes the objective in
                place, or returns another one in its place.

        Raises:
            TypeError: `change` returned something that is no module.

        Plain values, such as a margin on a schedule, may also be set on the base space's objective or miner alone:
        the next training call brings them to every space, as it does a `reset_queue()` of a CrossBatchMemory.

        Example:
            >>> from pytorch_metric_learning import losses
            >>> from pml_s2sd import s2sd
            >>> embedder, loss_func = s2sd(losses.ContrastiveLoss(), in_features=64, embedding_size=8)
            >>> loss_func.change_objectives(lambda objective, size: losses.CrossBatchMemory(objective, size, 1024))
            >>> [loss.embedding_size for loss in (loss_func.base_loss, *loss_func.aux_losses.values())]
            [8, 1024]
        """
        self._carry_over(what_can_be=True)
        changed = []
        for objective, size in zip(self._losses, (self.embedding_size, *self.aux_sizes), strict=True):
            found = change(objective, size)
            check_instance("what change returns", found, nn.Module, "the objective in its place, or None")
            changed.append(objective if found is None else found)
        base, *aux = changed
        super().__setattr__("base_loss", base)
        self.aux_losses = _by_space(aux)
        self._prepare_spaces()

    def __setattr__(self, name: str, value: Any) -> None:
        made = "_live" in self.__dict__
        if made and name == "miner":
            self._carry_over(what_can_be=True)
            check_instance("miner", value, nn.Module, "a pytorch_metric_learning miner")
        if made and name == "base_loss" and value is not self.base_loss:
            raise AttributeError(
                "base_loss is one of several objectives, one a space; change all of them by "
                "loss_func.change_objectives(lambda objective, embedding_size: …)"
            )
        super().__setattr__(name, value)
        if made and name == "miner":
            self.aux_miners = _by_space([copy.deepcopy(value) for _ in self.aux_sizes])
            self._prepare_spaces()

    def _carry_over(self, **options: bool) -> None:
        """What was changed since the last training call reaches every space."""
        for live in self._live:
            live.carry_over(**options)

    def _prepare_spaces(self) -> None:
        """What goes with each space's objective and miner as they are now."""
        self._shared = SharedSimilarities(zip(self.aux_losses.values(), self.aux_miners.values(), strict=True))
        self._live = [
            LiveObjectives(self.base_loss, [*self.aux_losses.values()]),
            LiveObjectives(self.miner, [*self.aux_miners.values()]),
        ]

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
            f"include_diagonal={self.include_diagonal}, columns={self.columns}, "
            f"feature_weight={self.feature_weight}, feature_delay={self.feature_delay}"
        )


def _default_weight(apart: bool, teachers: int) -> float:
    if apart:
        return APART_WEIGHT
    if not teachers:
        return 0.0
    raise ValueError(
        "distill_weight is missing; s2sd(loss, in_features, embedding_size) makes embedder and loss with all that goes "
        "together, and the paper's weight is 50"
    )


def _by_space(modules: Sequence[nn.Module | None]) -> nn.ModuleDict:
    """The auxiliary spaces' modules, a1 … am: PML's record-keeper turns these names into those of tables."""
    by_name = nn.ModuleDict()
    for i, module in enumerate(modules, start=1):
        by_name.add_module(f"a{i}", module)
    return by_name
