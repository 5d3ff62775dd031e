"""What each process of `test_distributed.py` runs: every case on its share of the batch, against one process on all.

Started as ``python distributed_worker.py MODE RANK WORLD_SIZE STORE_FILE RESULT_FILE``. Rank 0 writes, for every case,
the largest difference of each gradient and of each term to those of one process.
"""

import contextlib
import copy
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper, DistributedMinerWrapper
from pytorch_metric_learning.utils.loss_and_miner_utils import get_all_pairs_indices
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from pml_s2sd import S2SDEmbedder, S2SDLoss, _shared_similarities, s2sd

BATCH, FEATURES, STEPS = 12, 7, 3
UNEVEN = {2: [7, 5], 3: [5, 4, 3]}
AUX_SIZES = {"DSD": (6,)}


@contextlib.contextmanager
def counting() -> Iterator[tuple[list[torch.Size], list[torch.Size], list[torch.Size]]]:
    """The shapes of batches of which similarities are computed, by `SharedCosine` and by PML, and objectives.

    For one case only: torch.compile would trace the lists, and compile anew as they grow.
    """
    shared, by_pml, objectives = [], [], []
    cosines, compute_mat = _shared_similarities.cosines, CosineSimilarity.compute_mat
    compute_loss = losses.MultiSimilarityLoss.compute_loss
    _shared_similarities.cosines = lambda x: shared.append(x.shape) or cosines(x)
    CosineSimilarity.compute_mat = lambda self, x, ref: by_pml.append(x.shape) or compute_mat(self, x, ref)
    losses.MultiSimilarityLoss.compute_loss = lambda self, x, *rest: (
        objectives.append(x.shape) or compute_loss(self, x, *rest)
    )
    try:
        yield shared, by_pml, objectives
    finally:
        _shared_similarities.cosines = cosines
        del CosineSimilarity.compute_mat, losses.MultiSimilarityLoss.compute_loss  # inherited


class Case(NamedTuple):
    objective: Callable[[], torch.nn.Module]
    wrapped: bool = True
    efficient: bool = False
    variant: str = "MSDF"
    uneven: bool = False
    miner: Callable[[], torch.nn.Module] | None = None
    outside: bool = False
    """The miner is called by the user, on one process as it is, on several as PML's DistributedMinerWrapper."""
    ref: bool = False
    own_ref: bool = False
    """The batch is its own reference."""
    copied_labels: bool = False
    labels: bool = True
    enqueue_mask: bool = False
    ddp_loss: bool = False
    sorted_labels: bool = False
    compiled: bool = False
    apart: bool = False


class LowLabelsMiner(miners.BaseMiner):
    """Pairs of the first labels' anchors only: with sorted labels, the last process has none."""

    def mine(self, embeddings, labels, ref_emb, ref_labels):
        pairs = get_all_pairs_indices(labels, None if ref_labels is labels else ref_labels)
        low = [labels[anchors] < 1 for anchors in pairs[::2]]
        return (pairs[0][low[0]], pairs[1][low[0]], pairs[2][low[1]], pairs[3][low[1]])

    def output_assertion(self, output):
        assert len(output) == 4


class Alignment(torch.nn.Module):
    """Of a sample and its other view; a mean over samples, so that processes need not be gathered for it."""

    def forward(self, embeddings, ref_emb):
        return (embeddings - ref_emb).square().mean()


class AsksForCosines(torch.nn.Module):
    """A mean over samples that knows the similarities of a process's own samples only."""

    def __init__(self):
        super().__init__()
        self.distance = CosineSimilarity()

    def forward(self, embeddings, labels):
        assert self.distance(embeddings).shape == (len(labels), len(labels))
        return embeddings.square().mean()


def multi_similarity() -> torch.nn.Module:
    return losses.MultiSimilarityLoss(alpha=2, beta=40, base=0.5)


def memory() -> torch.nn.Module:
    return losses.CrossBatchMemory(losses.ContrastiveLoss(), 4, memory_size=30)


CASES = {
    **{variant: Case(multi_similarity, variant=variant) for variant in ("DSD", "MSD", "MSDF", "MSDFA")},
    "plain": Case(losses.ContrastiveLoss),
    "uneven": Case(losses.ContrastiveLoss, uneven=True),
    "uneven MSDFA, mined": Case(multi_similarity, uneven=True, variant="MSDFA", miner=miners.MultiSimilarityMiner),
    "miner of the user": Case(multi_similarity, miner=miners.MultiSimilarityMiner, outside=True),
    "efficient": Case(multi_similarity, efficient=True),
    "efficient, uneven, mined": Case(
        multi_similarity, efficient=True, uneven=True, miner=lambda: miners.MultiSimilarityMiner(1.0)
    ),
    "efficient, references": Case(multi_similarity, efficient=True, ref=True),
    "efficient, no pairs on some": Case(multi_similarity, efficient=True, miner=LowLabelsMiner, sorted_labels=True),
    "references": Case(losses.ContrastiveLoss, ref=True, uneven=True),
    "not wrapped, cosines known of the own samples": Case(AsksForCosines, wrapped=False),
    "the batch as its reference": Case(multi_similarity, own_ref=True, uneven=True),
    "the batch as its reference, efficient": Case(multi_similarity, own_ref=True, efficient=True),
    "compiled loss": Case(multi_similarity, compiled=True, uneven=True),
    "memory": Case(memory),
    "memory, uneven": Case(memory, uneven=True),
    "memory, enqueue_mask": Case(memory, enqueue_mask=True, uneven=True),
    "proxies": Case(lambda: losses.ProxyAnchorLoss(6, 4), uneven=True),
    "proxies, loss in DDP": Case(lambda: losses.ProxyAnchorLoss(6, 4), ddp_loss=True),
    "proxies, not wrapped, loss in DDP": Case(lambda: losses.NormalizedSoftmaxLoss(6, 4), wrapped=False, ddp_loss=True),
    "recommended": Case(multi_similarity, apart=True, uneven=True),
    "recommended, references": Case(losses.ContrastiveLoss, apart=True, ref=True),
    "recommended, the batch as its reference": Case(multi_similarity, apart=True, own_ref=True, uneven=True),
    "recommended, the batch as its reference, labels copied": Case(
        multi_similarity, apart=True, own_ref=True, copied_labels=True, uneven=True
    ),
    "recommended, two views": Case(Alignment, wrapped=False, apart=True, ref=True, labels=False),
    "class weights": Case(lambda: losses.ArcFaceLoss(6, 4), uneven=True, variant="MSD"),
}

MODES: dict[str, Callable[[torch.nn.Module], torch.nn.Module]] = {
    "ddp": DistributedDataParallel,
    "ddp_find_unused": lambda model: DistributedDataParallel(model, find_unused_parameters=True),
    "ddp_static_graph": lambda model: DistributedDataParallel(model, static_graph=True),
    "fsdp2": lambda model: shard_each_head(model),
}


def shard_each_head(model: torch.nn.Module) -> torch.nn.Module:
    """FSDP2 as it is applied to large models: what is resharded after forward must be gathered again in backward."""
    for head in [model.head, *model.aux_heads]:
        fully_shard(head)
    return fully_shard(model, reshard_after_forward=True)


class Run(NamedTuple):
    embedder: S2SDEmbedder
    loss_func: S2SDLoss
    miner: torch.nn.Module | None


def build(case: Case, wrap: bool) -> Run:
    torch.manual_seed(0)
    objective = case.objective()
    if wrap and case.wrapped:
        objective = DistributedLossWrapper(objective, efficient=case.efficient)
    inside = {} if case.outside or case.miner is None else {"miner": case.miner()}
    variant = None if case.apart else case.variant
    delay = {"feature_delay": 1} if "F" in (variant or "") else {}
    sizes = AUX_SIZES.get(case.variant, (6, 10))
    embedder, loss_func = s2sd(
        objective, FEATURES, 4, variant, aux_sizes=sizes, distill_weight=3.0, temperature=0.3, **delay, **inside
    )
    for module in (embedder, loss_func):
        module.double()
    miner = None
    if case.outside:
        miner = DistributedMinerWrapper(case.miner()) if wrap else case.miner()
    return Run(embedder, loss_func, miner)


def batch(case: Case, step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    shape = (BATCH, FEATURES, 3, 3) if case.variant == "MSDFA" else (BATCH, FEATURES)
    labels = torch.arange(BATCH) // 2
    if not case.sorted_labels:
        labels = labels[torch.randperm(BATCH, generator=generator)]
    features, ref = (torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))
    return {"features": features, "labels": labels, "ref": ref, "mask": torch.arange(BATCH) % 3 != 0}


def train(run: Run, case: Case, rows: slice) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A few steps without an optimizer, so that memories fill; the gradients and terms of the last one are kept."""
    call = torch.compile(run.loss_func, backend="aot_eager") if case.compiled else run.loss_func
    for step in range(STEPS):
        run.embedder.zero_grad()
        run.loss_func.zero_grad()
        part = {name: tensor[rows] for name, tensor in batch(case, step).items()}
        # one forward for both, as DistributedDataParallel wants it
        samples = len(part["labels"])
        both = run.embedder(torch.cat([part["features"], part["ref"]]) if case.ref else part["features"])
        arguments: dict[str, Any] = {}
        if case.ref:
            # a copy: PML takes labels and ref_labels that are one tensor for a batch compared with itself
            arguments = {"ref_emb": both[samples:], "ref_labels": part["labels"].clone()}
        if case.enqueue_mask:
            arguments["enqueue_mask"] = part["mask"]
        embeddings = both[:samples]
        if case.own_ref:
            labels = part["labels"].clone() if case.copied_labels else part["labels"]
            arguments = {"ref_emb": embeddings, "ref_labels": labels}
        if not case.labels:
            del arguments["ref_labels"]
        if run.miner is not None:
            arguments["indices_tuple"] = run.miner(embeddings, part["labels"])
        loss = call(embeddings, *([part["labels"]] if case.labels else []), **arguments)
        loss.backward()
    loss_func = run.loss_func.module if case.ddp_loss and dist.is_initialized() else run.loss_func
    return loss.detach(), loss_func.terms


def gradients(run: Run) -> dict[str, torch.Tensor]:
    named = [*run.embedder.named_parameters(prefix="embedder"), *run.loss_func.named_parameters(prefix="loss_func")]
    return {without_wrappers(name): parameter.grad for name, parameter in named}


def without_wrappers(name: str) -> str:
    """A parameter's name without the levels that DistributedDataParallel and DistributedLossWrapper add."""
    return re.sub(r"(base_loss|a[0-9]+)\.loss\.", r"\1.", name.replace("module.", ""))


def largest_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    found = found.full_tensor() if hasattr(found, "full_tensor") else found
    return (found - expected).abs().max().item()


def main(mode: str, rank: int, world_size: int, store: str, result: str) -> None:
    torch.set_num_threads(1)
    expected = {}
    for name, case in CASES.items():
        run = build(case, wrap=False)
        loss, terms = train(run, case, slice(None))
        expected[name] = loss, terms, gradients(run), copy.deepcopy(run.loss_func.state_dict())

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    found: dict[str, dict[str, float]] = {}
    for name, case in CASES.items():
        run = build(case, wrap=True)
        embedder = MODES[mode](run.embedder)
        loss_func = DistributedDataParallel(run.loss_func) if case.ddp_loss else run.loss_func
        sizes = UNEVEN[world_size] if case.uneven else [BATCH // world_size] * world_size
        start = sum(sizes[:rank])
        wrapped = Run(embedder, loss_func, run.miner)
        counted = counting() if name == "uneven MSDFA, mined" else contextlib.nullcontext()
        with counted as similarities:
            loss, terms = train(wrapped, case, slice(start, start + sizes[rank]))
        expected_loss, expected_terms, expected_gradients, expected_state = expected[name]

        found[name] = {"largest gradient": max(g.abs().max().item() for g in expected_gradients.values())}
        for term, value in {"total": loss, **terms}.items():  # their mean over processes is one process's
            value = value.clone()
            dist.all_reduce(value)
            reference = {"total": expected_loss, **expected_terms}[term]
            found[name][term] = largest_difference(value / world_size, reference)
        for parameter, gradient in gradients(wrapped).items():
            found[name][parameter] = largest_difference(gradient, expected_gradients[parameter])
        for buffer, value in run.loss_func.named_buffers():
            if "memory" in buffer:
                found[name][buffer] = largest_difference(value, expected_state[without_wrappers(buffer)])
        if similarities is not None:
            # of each auxiliary space once a step: whole by the process that computes its objective, for miner,
            # objective and distillation, and by the others the rows that distillation needs
            shared, by_pml, objectives = similarities
            of_aux = [shape for shape in by_pml if shape[1] in (6, 10)]
            found[name]["similarities computed"] = abs(len(shared) + len(of_aux) - 2 * STEPS)
            whole = sorted(shape for shape in objectives if shape[1] in (6, 10))
            found[name]["whole similarities are those of the own objectives"] = float(sorted(shared) != whole)
            computed = torch.tensor(len(objectives))
            dist.all_reduce(computed)  # each space's objective once a step, by one of the processes
            found[name]["objectives computed"] = abs(computed.item() - 3 * STEPS)
    if rank == 0:
        with open(result, "w") as file:
            json.dump(found, file)
    dist.barrier()  # none leaves while another still talks to it
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
