"""What learns a map as an idea has it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from study.compress_ideas import Idea
from study.cuts import Rows
from study.pretrained import VIEWS

SIZES = (32, 64)
Learned = tuple[Callable[[Rows], list[torch.Tensor]], list[float]]
"""The maps, and the loss of each at the end."""


class Data(NamedTuple):
    """Rows to learn from; each row of nobody's class has a label below 0 of its own."""

    x: torch.Tensor
    e: torch.Tensor
    labels: torch.Tensor
    images: torch.Tensor


def learn(idea: Idea, data: Data, further: dict[str, Data], starts: dict, judge: Callable | None = None) -> Learned:
    """The maps, as a function of `Rows` that gives an embedding for each size; `starts` holds those made before."""
    data = _prepared(idea, data, further)
    mean = data.x.mean(0) if idea.centred else torch.zeros_like(data.x[0])
    key = (idea.start, idea.ridge, idea.views, idea.smooth, idea.centred, idea.also, idea.alone, idea.stop, idea.fused)
    if key not in starts:
        starts[key] = _start(idea, data._replace(x=data.x - mean))
    axes, back = _axes(data.x - mean) if idea.paced else (None, None)
    weights = [(w.clone() if back is None else back @ w).requires_grad_() for w in starts[key]]
    hidden = _Hidden(data.x.shape[1], idea.hidden).to(data.x.device) if idea.hidden else None
    biases = [w.new_zeros(w.shape[1]).requires_grad_() for w in weights] if idea.centred else []
    parameters = [*weights, *biases, *(hidden.parameters() if hidden else ())]

    def maps(rows: Rows) -> list[torch.Tensor]:
        return of_rows(F.normalize(rows.embeddings if idea.alone else rows.features) - mean)

    def of_rows(x: torch.Tensor) -> list[torch.Tensor]:
        z = [x @ w if axes is None else x @ (axes @ w) for w in weights]
        if biases:
            z = [a + b for a, b in zip(z, biases, strict=True)]
        if hidden:
            z = [a + b for a, b in zip(z, hidden(x), strict=True)]
        return [F.normalize(a) for a in z]

    weigh = _hub_weights(idea, data)
    optimizer = torch.optim.Adam(parameters, idea.rate, fused=True)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, idea.steps))
    best: tuple[float, list[torch.Tensor]] = (-math.inf, [])
    last: list[torch.Tensor] = []
    for step in range(idea.steps):
        if judge is not None and step % 50 == 0:
            best = max(best, (judge(maps), [p.detach().clone() for p in parameters]), key=lambda pair: pair[0])
        S = _subset(idea, data)
        x, teachers, bonus = _teacher(idea, data, S)
        values = torch.stack([_loss(idea, z, teachers, bonus, data.images[S], weigh[S]) for z in of_rows(x - mean)])
        loss = values.sum()
        last = [*last[-19:], values.detach()]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    if judge is not None and best[0] > judge(maps):
        with torch.no_grad():
            for p, value in zip(parameters, best[1], strict=True):
                p.copy_(value)
    with torch.no_grad():
        for w, first in zip(weights, starts[key] if back is None else [back @ w for w in starts[key]], strict=True):
            w.lerp_(first, 1 - idea.kept)
    return maps, torch.stack(last).mean(0).tolist() if last else [math.nan] * len(SIZES)


def _axes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What maps are trained in, (F, F), and its inverse: the principal axes, each longer where rows vary more."""
    variance, axes = torch.linalg.eigh(torch.cov(x.double().T))
    pace = (variance / variance[-1]).clamp_min(1e-12).sqrt()
    pace = pace * variance.sum() / (pace * variance).sum()
    return (axes * pace.sqrt()).float(), (axes / pace.sqrt()).T.float()


class _Hidden(nn.Module):
    """The MLP's part of the map, 0 at the start."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(features, hidden)
        self.second = nn.ModuleList(nn.Linear(hidden, size) for size in SIZES)
        for layer in self.second:
            nn.init.zeros_(layer.weight)
        with torch.no_grad():
            self.first.weight *= features**0.5 / 4  # rows of x have length 1

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        h = F.relu(self.first(x))
        return [layer(h) for layer in self.second]


def _prepared(idea: Idea, data: Data, further: dict[str, Data]) -> Data:
    data = Data(*(part[: len(data.x) // VIEWS * idea.views] for part in data))
    data = Data(*(torch.cat(parts) for parts in zip(data, *(further[name] for name in idea.also), strict=True)))
    e = data.e
    if idea.smooth:
        means = torch.zeros(int(data.labels.max()) + 1, e.shape[1], device=e.device).index_add_(0, data.labels, e)
        e = F.normalize((1 - idea.smooth) * e + idea.smooth * F.normalize(means)[data.labels])
    return data._replace(x=e if idea.alone else F.normalize(data.x), e=e)


def joined(e: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Rows whose cosine is the mean of the two."""
    return F.normalize(torch.cat([e, other], dim=1))


def _start(idea: Idea, data: Data) -> list[torch.Tensor]:
    x, e = data.x.double(), data.e.double()
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    if idea.start == "lda":
        labels = data.labels.unique(return_inverse=True)[1]
        counts = torch.bincount(labels)[:, None]
        means = torch.zeros(len(counts), x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, labels, x) / counts
        within = torch.cov((x - means[labels]).T)
        within = (within + within.diagonal().mean() * eye) / 2
        L = torch.linalg.cholesky(within)
        between = torch.linalg.solve_triangular(L, torch.cov(means.T), upper=False)
        between = torch.linalg.solve_triangular(L, between.T, upper=False)
        vectors = torch.linalg.eigh((between + between.T) / 2).eigenvectors.flip(1)[:, : max(SIZES)]
        W = torch.linalg.solve_triangular(L.T, vectors, upper=True)
        W = W / torch.linalg.vector_norm(x @ W, dim=1).mean()
    elif idea.start == "random":
        W = torch.randn(x.shape[1], max(SIZES), dtype=x.dtype).to(x.device) / 3
    elif idea.start == "features":
        W = torch.linalg.eigh(torch.cov(x.T)).eigenvectors.flip(1)[:, : max(SIZES)]
    else:
        if idea.start == "class means":
            labels = data.labels.unique(return_inverse=True)[1]
            means = torch.zeros(int(labels.max()) + 1, e.shape[1], dtype=e.dtype, device=e.device)
            second = torch.cov(means.index_add_(0, labels, e).T)
        else:
            second = torch.cov(e.T) if idea.start == "pca" else e.T @ e
        directions = torch.linalg.eigh(second).eigenvectors.flip(1)[:, : max(SIZES)]
        squares = x.T @ x
        W = torch.linalg.solve(squares + idea.ridge * squares.diagonal().mean() * eye, x.T @ (e @ directions))
    return [W[:, :size].float().contiguous() for size in SIZES]


def _subset(idea: Idea, data: Data) -> torch.Tensor:
    N, device = len(data.x), data.x.device
    if not idea.whole_classes:
        return torch.randint(N, (idea.rows,), device=device)
    order = torch.rand(int(data.labels.max()) + 1, device=device)[data.labels]  # classes in random order
    return order.argsort()[: idea.rows]


def _teacher(idea: Idea, data: Data, S: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """x_S, what each teacher says of its similarities, and [y_i = y_j]."""
    x = data.x[S]
    spaces = {"e": [data.e[S]], "x": [x], "e x": [data.e[S], x]}[idea.teachers]
    if idea.fused == "apart":
        spaces = [F.normalize(e) for e in data.e[S].chunk(2, dim=1)]
    labels = data.labels[S]
    same = (labels[:, None] == labels).float()
    if idea.moved:
        J, K = torch.randint(len(data.x), (2, int(data.labels.max()) + 1), device=x.device)
        of_all = {"e": [data.e], "x": [data.x], "e x": [data.e, data.x]}[idea.teachers]
        spaces = [F.normalize(e[S] + idea.moved * (e[J] - e[K])[labels]) for e in of_all]
        x = F.normalize(x + idea.moved * (data.x[J] - data.x[K])[labels])
    if idea.mixed:
        a = torch.where(
            torch.rand(len(S), 1, device=x.device) < idea.mixed, torch.rand(len(S), 1, device=x.device) / 2, 0
        )
        other = torch.randperm(len(S), device=x.device)
        spaces = [F.normalize((1 - a) * e + a * e[other]) for e in spaces]
        x = F.normalize((1 - a) * x + a * x[other])
        same = (1 - a) * same + a * same[other]
        same = (1 - a.T) * same + a.T * same[:, other]
    return x, [e @ e.T for e in spaces], same


def _hub_weights(idea: Idea, data: Data) -> torch.Tensor:
    if not idea.hubs:
        return data.x.new_ones(len(data.x))
    one_view = data.e[: len(data.e) // idea.views]
    similar = (one_view @ one_view.T).fill_diagonal_(-1)
    occurrences = torch.bincount(similar.topk(10).indices.flatten(), minlength=len(one_view))
    weights = (1.0 + occurrences).pow(-idea.hubs).repeat(idea.views)
    return weights / weights.mean()


def _loss(
    idea: Idea,
    z: torch.Tensor,
    teachers: list[torch.Tensor],
    same: torch.Tensor,
    images: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    out = torch.eye(len(z), dtype=torch.bool, device=z.device)
    if idea.apart:
        out = out | (images[:, None] == images)
    D, T = z @ z.T, idea.temperature
    target = teachers[0] + idea.label_weight * same
    if idea.loss == "kl":
        log_p = (D / T).masked_fill(out, -1e9).log_softmax(1)
        values = []
        for t in teachers:
            t = (t + idea.label_weight * same) / (idea.teacher_temperature or T)
            q = t.masked_fill(out, -1e9).softmax(1)
            if idea.label_share:
                theirs = same.masked_fill(out, 0)
                theirs = theirs / theirs.sum(1, keepdim=True).clamp_min(1e-9)
                q = (1 - idea.label_share) * q + idea.label_share * theirs
            values.append(-(q * log_p.masked_fill(out, 0)).sum(1))
        return T**2 * (weights * torch.stack(values).mean(0)).mean()
    distance = (2 - 2 * D).clamp_min(1e-9).sqrt()
    of_teacher = (2 - 2 * target).clamp_min(1e-9).sqrt()
    if idea.loss == "mse":
        return (D - target.clamp_max(1))[~out].square().mean()
    if idea.loss == "rkd":
        return F.smooth_l1_loss(distance[~out] / distance[~out].mean(), of_teacher[~out] / of_teacher[~out].mean())
    if idea.loss == "pkt":
        p, q = ((1 + D) / 2).masked_fill(out, 0), ((1 + target) / 2).masked_fill(out, 0)
        p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
        return (q * ((q + 1e-7).log() - (p + 1e-7).log())).sum(1).mean()
    w = (-of_teacher.square()).exp()  # "relaxed"
    relative = distance / distance.mean(1, keepdim=True)
    pairs = w * relative.square() + (1 - w) * (1 - relative).clamp_min(0).square()
    return pairs.masked_fill(out, 0).sum(1).mean() / len(z)
