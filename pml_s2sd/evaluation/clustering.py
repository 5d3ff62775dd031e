"""k-means of embeddings, and how well the clusters match the classes."""

from __future__ import annotations

import faiss
import numpy as np
import torch
from sklearn.metrics.cluster import pair_confusion_matrix
from tqdm import tqdm


class KMeans:
    """k-means by faiss: PML's FaissKMeans with a progress bar, which appears after a few seconds.

    PML's protocol for ``kmeans_func``: called with embeddings (N, d) and the number of clusters, it
    returns the cluster of each, (N,), int64. The clusters are those of PML's FaissKMeans; as there,
    centroids are trained on at most 256 points each, drawn at random from a fixed seed.

    Args:
        iterations: passes over the points.

    Example:
        >>> import torch
        >>> from pml_s2sd.evaluation.clustering import KMeans
        >>> first, second, third, fourth = KMeans()(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), 2)
        >>> (first == second).item(), (third == fourth).item(), (first == third).item()
        (True, True, False)
    """

    def __init__(self, iterations: int = 20) -> None:
        self.iterations = iterations

    def __call__(self, x: torch.Tensor, clusters: int) -> torch.Tensor:
        points = np.ascontiguousarray(x.detach().cpu().numpy(), dtype=np.float32)
        # One pass at a time, each from the centroids of the last, so that there is something to show.
        on_gpu = x.is_cuda and faiss.get_num_gpus() > 0
        kmeans = faiss.Kmeans(points.shape[1], clusters, niter=1, gpu=on_gpu, min_points_per_centroid=1)
        centroids = None
        for _ in tqdm(range(self.iterations), desc="k-means", delay=3, leave=False):
            kmeans.train(points, init_centroids=centroids)
            centroids = kmeans.centroids
        return torch.from_numpy(kmeans.index.search(points, 1)[1][:, 0]).to(x.device)


def pairwise_f1(labels: torch.Tensor, clusters: torch.Tensor) -> float:
    """F1 = 2 P R / (P + R) = 2 TP / (2 TP + FP + FN), over pairs of samples

    A pair is positive where both are of one class, and found where both are in one cluster. NaN
    where there is neither a positive pair nor a found one.

    Args:
        labels: the class of each sample, (N,).
        clusters: its cluster, (N,).

    Source: Song et al., CVPR 2016 (arXiv 1511.06452), section 6; Manning et al. 2008, section 16.3.

    Example:
        >>> import torch
        >>> from pml_s2sd.evaluation.clustering import pairwise_f1
        >>> pairwise_f1(torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5, 5, 7]))
        0.4
    """
    (_, false_positive), (false_negative, true_positive) = pair_confusion_matrix(labels.cpu(), clusters.cpu())
    pairs = 2 * true_positive + false_positive + false_negative
    return float(2 * true_positive / pairs) if pairs else float("nan")
