"""k-means against PML's, and the F1 of pairs against loops over pairs."""

import math

import faiss
import metrics as plain
import pytest
import torch
from pytorch_metric_learning.utils.inference import FaissKMeans

from pml_s2sd.evaluation.clustering import KMeans, pairwise_f1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("rows", "clusters"), [(300, 20), (1000, 3), (40, 40)])
def test_clusters_are_those_of_pml(rows, clusters):
    x = torch.randn(rows, 8) + 3 * torch.randn(clusters, 8)[torch.arange(rows) % clusters]
    assert torch.equal(KMeans()(x, clusters), FaissKMeans(niter=20)(x, clusters))


@pytest.mark.gpu
@pytest.mark.skipif(faiss.get_num_gpus() == 0, reason="needs faiss for GPUs")
def test_clusters_on_the_gpu_are_those_of_the_cpu():
    """Classes far apart, in which rounding decides nothing."""
    x = torch.randn(300, 8) + 100 * torch.randn(6, 8)[torch.arange(300) % 6]
    on_gpu, on_cpu = KMeans()(x.cuda(), 6), KMeans()(x, 6)
    assert on_gpu.is_cuda
    assert pairwise_f1(on_cpu, on_gpu) == 1.0


def test_f1_equals_loops_over_pairs():
    labels, clusters = torch.randint(0, 6, (80,)), torch.randint(0, 9, (80,))
    expected = plain.pairwise_f1(labels.tolist(), clusters.tolist())
    assert pairwise_f1(labels, clusters) == pytest.approx(expected, abs=1e-12)


def test_f1_of_known_clusterings():
    labels = torch.tensor([3, 3, 8, 8, 8])
    assert pairwise_f1(labels, torch.tensor([1, 1, 0, 0, 0])) == 1.0
    assert pairwise_f1(labels, torch.arange(5)) == 0.0
    assert pairwise_f1(labels, torch.zeros(5)) == pytest.approx(2 * 0.4 * 1 / 1.4)  # P = 4/10, R = 1
    assert math.isnan(pairwise_f1(torch.arange(5), torch.arange(5)))
