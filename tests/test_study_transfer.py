"""What others distil in the batch, against sums over pairs and triples, one by one, in float64."""

import itertools
import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses
from study.transfer import TRANSFERS, Taught, pkt, relaxed_contrastive, rkd


def unit(x):
    x = x.numpy()
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def huber(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def rkd_by_loops(student, teacher):
    s, t = unit(student), unit(teacher)
    n = range(len(s))
    pairs = [(i, j) for i in n for j in n if i != j]

    def distance(x, i, j):
        mean = sum(np.linalg.norm(x[a] - x[b]) for a, b in pairs) / len(pairs)
        return np.linalg.norm(x[i] - x[j]) / mean

    def angle(x, i, j, k):
        a, b = x[i] - x[j], x[k] - x[j]
        return a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) if j not in (i, k) else 0.0

    distances = sum(huber(distance(s, i, j) - distance(t, i, j)) for i, j in pairs) / len(s) ** 2
    triples = itertools.product(n, n, n)
    return distances + 2 * sum(huber(angle(s, *ijk) - angle(t, *ijk)) for ijk in triples) / len(s) ** 3


def pkt_by_loops(student, teacher):
    s, t = unit(student), unit(teacher)
    total = 0.0
    for i in range(len(s)):
        others = [j for j in range(len(s)) if j != i]
        q, p = ({j: (x[i] @ x[j] + 1) / 2 for j in others} for x in (s, t))
        for j in others:
            p_ij, q_ij = p[j] / sum(p.values()), q[j] / sum(q.values())
            total += p_ij * math.log(p_ij / q_ij)
    return total


def relaxed_by_loops(student, teacher):
    s, t = unit(student), unit(teacher)
    n, total = len(s), 0.0
    for i in range(n):
        mean = sum(np.linalg.norm(s[i] - s[j]) for j in range(n)) / n
        for j in range(n):
            if j != i:
                w, d = math.exp(-((np.linalg.norm(t[i] - t[j])) ** 2)), np.linalg.norm(s[i] - s[j]) / mean
                total += w * d**2 + (1 - w) * max(0, 1 - d) ** 2
    return total / n


@pytest.mark.parametrize(
    "transfer, by_loops",
    [(rkd, rkd_by_loops), (pkt, pkt_by_loops), (relaxed_contrastive, relaxed_by_loops)],
    ids=list(TRANSFERS),
)
def test_a_transfer_is_its_formula(transfer, by_loops):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(7, d, generator=generator, dtype=torch.float64) for d in (3, 5))
    student.requires_grad_()
    loss = transfer(student, teacher)
    assert loss.item() == pytest.approx(by_loops(student.detach(), teacher), rel=1e-6)
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


@pytest.mark.parametrize("transfer", [rkd, pkt])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(transfer):
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert transfer(x, 3 * x).item() == pytest.approx(0, abs=1e-9)


def test_a_taught_loss_is_the_objective_and_its_weight_times_the_transfer():
    x, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) // 2
    teacher, objective = torch.nn.Linear(4, 9), losses.ContrastiveLoss()
    z = x[:, :2]
    for of_objective, alone in ((objective, objective(z, labels)), (None, 0)):
        loss = Taught(of_objective, teacher, pkt, weight=3.0)
        loss.teach(x)
        torch.testing.assert_close(loss(z, labels), alone + 3 * pkt(z, teacher(x)))
        assert not [*loss.parameters()]
