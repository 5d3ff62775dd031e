"""RetrievalAccuracyCalculator: PML's AccuracyCalculator with what papers on image retrieval report."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils.accuracy_calculator import (
    EQUALITY,
    AccuracyCalculator,
    maybe_get_avg_of_avgs,
    nan_accuracy,
)
from pytorch_metric_learning.utils.inference import FaissKNN

from .._argument_checks import check_int
from ._given import as_embeddings, as_labels
from .clustering import KMeans, pairwise_f1
from .gallery import Gallery
from .geometry import effective_rank, embedding_density, singular_values, spectral_decay
from .neighbours import KNN, search_in_blocks

BY_QUERY = (
    "precision_at_1",
    "r_precision",
    "mean_average_precision",
    "mean_average_precision_at_r",
    "mean_reciprocal_rank",
    "mean_average_precision_at_1000",
)
"""Metrics that are means over queries, so that blocks of queries can be taken in turn; recall_at_k besides."""


class RetrievalAccuracyCalculator(AccuracyCalculator):
    """PML's AccuracyCalculator with Recall@K, MAP@1000, clustering F1, and properties of the space.

    It stands wherever PML's stands, in every tester. PML's metrics are as in PML; besides:

    - ``recall_at_k`` for each K of `recall_at`: the share of queries with a reference of their class
      among the K nearest, (1/Q) Σ_q max_{i ≤ K} [y_{q,i} = y_q]. Jégou et al. 2011; the measure of
      Song et al. 2016. Recall@1 is precision_at_1.
    - ``mean_average_precision_at_1000``: (1/Q) Σ_q (1/R_q) Σ_{i ≤ 1000} P_q(i) [y_{q,i} = y_q], P_q(i)
      the precision among the first i, R_q the number of references of q's class, as PML's
      mean_average_precision with k=1000. (The code of Roth et al. 2020 divides by R_q + 1.)
    - ``f1``: of pairs, see `clustering.pairwise_f1`, and PML's ``NMI``, ``AMI``: of a k-means clustering of
      the queries into as many clusters as they have classes.
    - ``spectral_decay``, ``effective_rank``, ``embedding_density`` (`geometry`): of the queries, which
      PML's testers normalise.

    As in PML: a query without any reference of its class is left out; with `avg_of_avgs` metrics over
    queries are the mean of the classes' means, with `return_per_class` the list of these in the order
    of labels; ties are in the order in which knn_func returns them; a query is not its own neighbour
    where `ref_includes_query`. Other than in PML: labels of any integer dtype, and bools, are compared
    exactly, labels of any floating-point dtype in float64; a k above the number of references is cut
    to it; NaN, and names of metrics that the calculator does not have, are refused.

    Cost: queries are searched in blocks of at most 4096, and of at most 2²² neighbours, so that memory
    does not grow with Q × k. Time does grow with k. Each metric is given the neighbours it needs and
    the search goes as far as the farthest: 1 for precision_at_1, K for recall_at_k, 1000 for MAP@1000,
    and for PML's others PML's k, "max_bin_count" being the size of the largest class. For classes of
    thousands, an int k bounds it, as PML says at the price of R-precision and MAP@R. What it comes
    to: ``benchmarks/evaluation.py``. `label_comparison_fn`, several labels a sample, and metrics that a
    subclass adds are left to PML, which does everything in one piece.

    Args:
        include, exclude, avg_of_avgs, return_per_class, label_comparison_fn, device: as in PML.
        k: as in PML, but "max_bin_count" unless given. PML's None is the number of references.
        knn_func: exact search unless given, on the GPU where faiss has one; for large galleries
            `neighbours.ApproximateKNN`, in files larger than memory `gallery.GalleryKNN` or `gallery.OnDiskKNN`.
        kmeans_func: `clustering.KMeans` unless given, PML's own clusters.
        recall_at: the values of K.

    Raises:
        TypeError, ValueError: on bad arguments; in `get_accuracy`, on embeddings that are no finite
            matrix, labels that are no numbers or of another length, and metrics that it does not have.

    Source: pytorch_metric_learning.utils.accuracy_calculator; papers as above.

    Example:
        >>> import torch
        >>> from pml_s2sd.evaluation.accuracy import RetrievalAccuracyCalculator
        >>> calculator = RetrievalAccuracyCalculator(
        ...     include=("recall_at_1", "recall_at_2"), recall_at=(1, 2), device=torch.device("cpu")
        ... )
        >>> x = torch.tensor([[0.0], [1.0], [2.5], [4.5]])
        >>> calculator.get_accuracy(x, torch.tensor([0, 1, 0, 1]))
        {'recall_at_1': 0.0, 'recall_at_2': 0.5}
    """

    def __init__(
        self,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        avg_of_avgs: bool = False,
        return_per_class: bool = False,
        k: int | str | None = "max_bin_count",
        label_comparison_fn: Callable | None = None,
        device: torch.device | None = None,
        knn_func: KNN | None = None,
        kmeans_func: Callable | None = None,
        *,
        recall_at: Sequence[int] = (1, 2, 4, 8),
    ) -> None:
        for at in recall_at:
            check_int("each of recall_at", at, at_least=1)
        self.recall_at = tuple(recall_at)
        self._offer_recalls()
        super().__init__(
            tuple(include),
            tuple(exclude),
            avg_of_avgs,
            return_per_class,
            k,
            label_comparison_fn,
            device,
            knn_func,
            KMeans() if kmeans_func is None else kmeans_func,
        )

    def _offer_recalls(self) -> None:
        """PML finds metrics by the names of methods."""
        for at in self.recall_at:
            setattr(self, f"calculate_recall_at_{at}", functools.partial(self._recall, at=at))

    def requires_knn(self) -> list[str]:
        return [*BY_QUERY, *(f"recall_at_{at}" for at in self.recall_at)]

    def requires_clustering(self) -> list[str]:
        return [*super().requires_clustering(), "f1"]

    def requires_spectrum(self) -> list[str]:
        return ["spectral_decay", "effective_rank"]

    def _recall(
        self,
        *,
        at: int,
        knn_labels: torch.Tensor,
        query_labels: torch.Tensor,
        not_lone_query_mask: torch.Tensor,
        label_counts: tuple[torch.Tensor, torch.Tensor],
        **kwargs: Any,
    ) -> float | list[float]:
        if not not_lone_query_mask.any():
            return nan_accuracy(label_counts[0], self.return_per_class)
        labels = query_labels[not_lone_query_mask][:, None]
        right = self.label_comparison_fn(labels, knn_labels[not_lone_query_mask, :at]).any(dim=1)
        return maybe_get_avg_of_avgs(right.double(), labels, self.avg_of_avgs, self.return_per_class)

    def calculate_mean_average_precision_at_1000(self, **kwargs: Any) -> float | list[float]:
        return self.calculate_mean_average_precision(**kwargs)

    def calculate_f1(self, query_labels: torch.Tensor, cluster_labels: torch.Tensor, **kwargs: Any) -> float:
        return pairwise_f1(query_labels, cluster_labels)

    def calculate_spectral_decay(self, spectrum: torch.Tensor, **kwargs: Any) -> float:
        return spectral_decay(spectrum)

    def calculate_effective_rank(self, spectrum: torch.Tensor, **kwargs: Any) -> float:
        return effective_rank(spectrum)

    def calculate_embedding_density(self, query: torch.Tensor, query_labels: torch.Tensor, **kwargs: Any) -> float:
        return embedding_density(query, query_labels)

    def determine_k(self, bin_counts: torch.Tensor, num_reference_embeddings: int, ref_includes_query: bool) -> int:
        """How far the search goes: as far as the most demanding metric looks, at most to the last reference."""
        self._pml_k = super().determine_k(bin_counts, num_reference_embeddings, ref_includes_query)
        looked_at = [self._depth(name) for name in self.get_curr_metrics() if name in self.requires_knn()]
        return max(1, min(max(looked_at), num_reference_embeddings - int(ref_includes_query)))

    def _depth(self, metric: str) -> int:
        """How many neighbours a metric is given."""
        depths = {f"recall_at_{at}": at for at in self.recall_at}
        return {**depths, "precision_at_1": 1, "mean_average_precision_at_1000": 1000}.get(metric, self._pml_k)

    def get_accuracy(
        self,
        query: Any,
        query_labels: Any,
        reference: Any = None,
        reference_labels: Any = None,
        ref_includes_query: bool = False,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> dict[str, Any]:
        """The metrics chosen, by name, as PML's: of queries (Q, d) with labels (Q,), in references (R, d) with
        labels (R,); without references each query among the others. Tensors or arrays; labels of any real dtype. The
        reference may be a `gallery.Gallery`, where knn_func searches one.
        """
        self._check_names(include, exclude)
        if reference is None:
            if reference_labels is not None:
                raise ValueError("reference_labels are given without reference; give both, or neither")
            reference, reference_labels, ref_includes_query = query, query_labels, True
        x, labels = as_embeddings("query", query).to(self.device), as_labels("query_labels", query_labels)
        ref: torch.Tensor | Gallery = x
        if isinstance(reference, Gallery):
            ref = reference
        elif reference is not query:
            ref = as_embeddings("reference", reference).to(self.device)
        ref_labels = as_labels("reference_labels", reference_labels)
        if labels.dtype != ref_labels.dtype:  # one of them floating point
            labels, ref_labels = labels.double(), ref_labels.double()
        labels, ref_labels = labels.to(self.device), ref_labels.to(self.device)
        check_fit(x, labels, ref, ref_labels, ref_includes_query)
        chosen = self.get_function_dict(include, exclude)
        self._check_columns(labels, chosen)
        in_blocks = self._goes_in_blocks(labels, chosen)
        if isinstance(ref, Gallery):
            self._check_gallery_search(in_blocks)
        self.curr_function_dict = chosen
        if not in_blocks:
            return super().get_accuracy(x, labels, ref, ref_labels, ref_includes_query, include, exclude)
        by_query = [name for name in self.curr_function_dict if name in self.requires_knn()]
        others = {name: f for name, f in self.curr_function_dict.items() if name not in by_query}
        kwargs: dict[str, Any] = {"query": x, "query_labels": labels, "reference": ref, "reference_labels": ref_labels}
        kwargs |= {"ref_includes_query": ref_includes_query, "label_comparison_fn": self.label_comparison_fn}
        found = self._by_query(by_query, x, labels, ref, ref_labels, ref_includes_query) if by_query else {}
        if any(name in self.requires_clustering() for name in others):
            kwargs["cluster_labels"] = self.get_cluster_labels(**kwargs)
        found |= self._get_accuracy(others, **kwargs)
        return {name: found[name] for name in self.curr_function_dict}

    def _check_names(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        """PML takes no notice of a name that it does not know."""
        offered = self.original_function_dict
        unknown = [name for name in (*include, *exclude) if name not in offered]
        if isinstance(include, str) or isinstance(exclude, str) or unknown:
            raise ValueError(
                f"include and exclude must be sequences of this calculator's metrics, {', '.join(offered)}; got "
                f"{include!r} and {exclude!r}"
            )

    def _check_columns(self, labels: torch.Tensor, metrics: Iterable[str]) -> None:
        """Several labels a sample need a way to compare them, and metrics that compare."""
        if labels.dim() == 1:
            return
        of_labels = [name for name in metrics if name not in self.requires_spectrum()]
        if of_labels and self.label_comparison_fn is EQUALITY:
            raise ValueError(
                f"there are {labels.shape[1]} labels a sample, which label_comparison_fn has to compare; give one, or "
                "a single column of labels"
            )
        if "embedding_density" in of_labels:
            raise ValueError(f"embedding_density needs one label a sample, got {labels.shape[1]}; exclude it")

    def _check_gallery_search(self, in_blocks: bool) -> None:
        """Rows in files are read by what knows of files."""
        if isinstance(self.knn_func, FaissKNN):
            raise TypeError(
                "reference is a Gallery, which PML's search in memory cannot read; give this calculator "
                "knn_func=GalleryKNN(), or OnDiskKNN(folder)"
            )
        if not in_blocks:
            raise ValueError(
                "label_comparison_fn, several labels a sample, and metrics that a subclass adds need the references in "
                "memory; give a tensor in place of the Gallery, or leave them out"
            )

    def _goes_in_blocks(self, labels: torch.Tensor, metrics: Iterable[str]) -> bool:
        added = set(self.requires_knn()) - set(RetrievalAccuracyCalculator.requires_knn(self))
        return not added & set(metrics) and labels.dim() == 1 and self.label_comparison_fn is EQUALITY

    def _get_accuracy(self, function_dict: dict[str, Callable], **kwargs: Any) -> dict[str, Any]:
        if any(name in self.requires_spectrum() for name in function_dict):
            kwargs["spectrum"] = singular_values(kwargs["query"])
        if "knn_labels" not in kwargs:
            return super()._get_accuracy(function_dict, **kwargs)
        return {
            name: f(**{**kwargs, "knn_labels": kwargs["knn_labels"][:, : self._depth(name)]})
            for name, f in function_dict.items()
        }

    def _by_query(
        self,
        metrics: list[str],
        query: torch.Tensor,
        query_labels: torch.Tensor,
        reference: torch.Tensor | Gallery,
        reference_labels: torch.Tensor,
        ref_includes_query: bool,
    ) -> dict[str, Any]:
        """Metrics over queries: sums over the blocks, of each class where classes' means are wanted, then means."""
        labels = torch.unique(torch.cat([query_labels, reference_labels]))
        classes, ref_classes = (torch.searchsorted(labels, of) for of in (query_labels, reference_labels))
        matches = torch.bincount(ref_classes, minlength=len(labels))
        kept = torch.where(matches[classes] > int(ref_includes_query))[0]
        if not len(kept):
            c_f.LOGGER.warning("None of the query labels are in the reference set.")
            return {name: nan_accuracy(torch.unique(classes), self.return_per_class) for name in metrics}
        k = self.determine_k(matches[torch.unique(classes)], len(reference), ref_includes_query)
        by_class = self.avg_of_avgs or self.return_per_class
        sums = {name: torch.zeros(len(labels) if by_class else 1, dtype=torch.float64) for name in metrics}
        calculator = self._returning_classes() if by_class else self
        functions = {name: getattr(calculator, f"calculate_{name}") for name in metrics}
        selves = kept if ref_includes_query else None
        for rows, indices in search_in_blocks(self.knn_func, query[kept], k, reference, selves):
            of_block, counts = torch.unique(classes[kept[rows]], return_counts=True)
            means = calculator._get_accuracy(
                functions,
                knn_labels=ref_classes[indices].masked_fill(indices < 0, -1),  # -1: none was found
                query_labels=classes[kept[rows]],
                not_lone_query_mask=torch.ones_like(rows, dtype=torch.bool),
                label_counts=(of_block, matches[of_block]),
                ref_includes_query=ref_includes_query,
            )
            for name, mean in means.items():
                if by_class:
                    sums[name][of_block.cpu()] += counts.cpu() * torch.tensor(mean, dtype=torch.float64)
                else:
                    sums[name] += len(rows) * mean
        queries = torch.bincount(classes[kept].cpu(), minlength=len(labels)) if by_class else torch.tensor([len(kept)])
        return {name: self._mean(total, queries) for name, total in sums.items()}

    def _returning_classes(self) -> RetrievalAccuracyCalculator:
        """This calculator, but for what its metrics return: the mean of each class."""
        twin = copy.copy(self)
        twin.avg_of_avgs, twin.return_per_class = False, True
        twin._offer_recalls()
        return twin

    def _mean(self, sums: torch.Tensor, counts: torch.Tensor) -> float | list[float]:
        """What PML returns, of sums and counts, which are by class where that is wanted."""
        means = (sums / counts)[counts > 0]
        return means.tolist() if self.return_per_class else means.mean().item()


def check_fit(
    x: torch.Tensor,
    labels: torch.Tensor,
    ref: torch.Tensor | Gallery,
    ref_labels: torch.Tensor,
    ref_includes_query: bool,
) -> None:
    """Labels for all, embeddings of one space, and where references include the queries, these first."""
    for name, embeddings, of_them in (("query", x, labels), ("reference", ref, ref_labels)):
        if len(of_them) != len(embeddings):
            raise ValueError(
                f"{name} has {len(embeddings)} embeddings and {len(of_them)} labels; give one label for each"
            )
    if ref_labels.shape[1:] != labels.shape[1:]:
        raise ValueError(
            f"query_labels and reference_labels must be of as many columns, got shapes {tuple(labels.shape)} and "
            f"{tuple(ref_labels.shape)}"
        )
    if ref.shape[1] != x.shape[1]:
        raise ValueError(f"query has embeddings of size {x.shape[1]}, reference of size {ref.shape[1]}; use one model")
    if ref_includes_query:
        first, first_labels = ref[: len(x)], ref_labels[: len(x)]
        same = ref is x or (len(first) == len(x) and torch.allclose(x, first.to(x.device)))
        if not same or not torch.equal(labels, first_labels):
            raise ValueError(
                "with ref_includes_query=True the first len(query) references, and their labels, must be the queries"
            )
