"""What was tried before `compress` got its defaults: each idea alone, and together, on training classes held out.

    PYTHONPATH=examples python -m study.compress_tried                       # the table of what is published
    PYTHONPATH=examples python -m study.compress_tried --measure --device cuda --processes 16
    PYTHONPATH=examples python -m study.compress_tried --measure --objectives supcon --seeds 100 --ideas "T = 0.1"

Models are trained at 1,024 dimensions on three quarters of the training classes; the other quarter stands in for the
unseen ones, which are left alone. One JSON line a result, appended to --results as it comes; what is there already of
the same device is not measured again.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from pml_s2sd.training_features import TURNS
from study.compress_tables import tried
from study.cuts import Rows, embedded
from study.pretrained import VIEWS
from study.questions import LARGE, TRAININGS
from study.settings import Setting
from study.study import TRIED, add_arguments, in_parallel, read, setting_of, where
from study.training import retrieval, train

SIZES = (32, 64)
SEEDS = (100, 101, 102)
ITSELF, TRAINED = "1,024 itself", "trained"
"""Among the ideas: the large model, and models trained at the small sizes."""
OF_TRAINING = ("tuned 5", "tuned 15")


@dataclass(frozen=True)
class Idea:
    """How a map is made; the defaults are the prototype's.

    Args:
        label_weight: λ, added to the similarities of a class.
        label_share: instead, this share of each row's teacher distribution is even over its class.
        smooth: the embeddings are moved towards the mean of their class by this share.
        temperature: of student and teacher.
        teacher_temperature: of the teacher, where it has its own.
        rows: of a subset.
        whole_classes: a subset is all rows of some classes.
        steps, rate: of Adam.
        views: of each image, in features and embeddings.
        centred: what is mapped has its mean taken away, and the map a bias.
        teachers: "e", "x" (features), "e x" (the mean of both KLs).
        start: "pca", "plain pca" (not centred), "features" (PCA of these), "class means" (PCA of
            the embeddings' ones), "lda" (regularised), "random".
        ridge: of the start's regression.
        hidden: of a hidden layer beside the linear map: 0 for none.
        hubs: rows weigh (1 + their occurrences in lists of ten)^-hubs.
        mixed: this share of rows is drawn towards other rows, features and embeddings alike.
        apart: views of one image are not compared.
        moved: each class is moved, as a whole, by this multiple of the difference of two rows drawn at random.
        loss: "kl", "relaxed" (relaxed contrastive, arXiv 2103.14908), "rkd" (distances, arXiv 1904.05068), "pkt" (arXiv
            1803.10837), "mse" of the similarities.
        stop: whether the step is taken at which MAP@R is best on a fifth of the classes, kept from training.
        also: further rows: "turned" images, classes of their own; "mixed" ones, nobody's class; the "gallery", which is
            the test rows without labels.
        alone: the map is taken of the embeddings, not of the features.
        paced: Adam moves along the principal axes of what is mapped, further where rows vary more, as `compress` does.
        fused: a second model's embeddings of the same rows teach too: "joined" (the mean of the similarities), "apart"
            (the mean of both KLs).
        kept: the map is this far from its start towards what was learned.
    """

    label_weight: float = 0.0
    label_share: float = 0.0
    smooth: float = 0.0
    temperature: float = 0.05
    teacher_temperature: float | None = None
    rows: int = 512
    whole_classes: bool = False
    steps: int = 300
    rate: float = 1e-3
    views: int = VIEWS
    centred: bool = False
    teachers: str = "e"
    start: str = "pca"
    ridge: float = 1e-3
    hidden: int = 0
    hubs: float = 0.0
    mixed: float = 0.0
    moved: float = 0.0
    apart: bool = False
    loss: str = "kl"
    stop: bool = False
    also: tuple[str, ...] = ()
    alone: bool = False
    paced: bool = False
    fused: str = ""
    kept: float = 1.0


OTHER = 1000
"""A second model's seed is the first one's and so many."""
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


LABELS = Idea(label_weight=0.3)
CHOSEN = Idea(start="features", rate=3e-3, paced=True)
"""What `compress` does."""
_LONG = {"rows": 2048, "steps": 1000}
WITHOUT = {
    "prototype": Idea(),
    "PCA, no training": Idea(steps=0),
    "PCA not centred, no training": Idea(steps=0, start="plain pca"),
    "T = 0.03": Idea(temperature=0.03),
    "T = 0.07": Idea(temperature=0.07),
    "T = 0.1": Idea(temperature=0.1),
    "teacher's T = 0.03": Idea(teacher_temperature=0.03),
    "student's T = 0.07": Idea(temperature=0.07, teacher_temperature=0.05),
    "subsets of 112": Idea(rows=112),
    "subsets of 2048": Idea(rows=2048),
    "1000 steps": Idea(steps=1000),
    "subsets of 2048, 1000 steps": Idea(**_LONG),
    "subsets of 2048, 1000 steps, rate 3e-3": Idea(**_LONG, rate=3e-3),
    "rate 3e-3": Idea(rate=3e-3),
    "centred": Idea(centred=True),
    "one view": Idea(views=1),
    "views of an image apart": Idea(apart=True),
    "features as teacher too": Idea(teachers="e x"),
    "mixed rows": Idea(mixed=0.5),
    "classes moved, 0.5": Idea(moved=0.5),
    "classes moved, 1": Idea(moved=1.0),
    "hubs weigh less": Idea(hubs=0.5),
    "hubs weigh much less": Idea(hubs=1.0),
    "a second model teaches, joined": Idea(fused="joined"),
    "a second model teaches, apart": Idea(fused="apart"),
    "two models, embeddings joined": Idea(fused="joined", alone=True),
    "hidden layer": Idea(hidden=1024),
    "random start": Idea(start="random"),
    "relaxed contrastive": Idea(loss="relaxed"),
    "RKD": Idea(loss="rkd"),
    "PKT": Idea(loss="pkt"),
    "squared error": Idea(loss="mse"),
    "start from PCA of features": Idea(start="features"),
    "start from PCA of features, rate 3e-3": Idea(start="features", rate=3e-3),
    "chosen": CHOSEN,
    "chosen, embeddings alone": replace(CHOSEN, alone=True),
    "embeddings alone": Idea(alone=True),
    "half way": Idea(kept=0.5),
    "turned images": Idea(also=("turned",)),
    "mixed images": Idea(also=("mixed",)),
    "turned and mixed images": Idea(also=("turned", "mixed")),
    "turned and mixed images, subsets of 2048": Idea(also=("turned", "mixed"), rows=2048),
    "turned and mixed images, subsets of 2048, 1000 steps": Idea(also=("turned", "mixed"), rows=2048, steps=1000),
    "turned and mixed images, embeddings alone": Idea(also=("turned", "mixed"), alone=True),
    "chosen, the gallery's rows alone": replace(CHOSEN, views=0, also=("gallery",)),
    "chosen, the gallery's rows too": replace(CHOSEN, also=("gallery",)),
    "gallery's rows": Idea(also=("gallery",)),
}
WITH = {
    "prototype": LABELS,
    **{f"λ = {w:g}": replace(LABELS, label_weight=w) for w in (0.1, 0.2, 0.5, 1.0)},
    "LDA, no training": Idea(steps=0, start="lda"),
    "LDA as start": replace(LABELS, start="lda"),
    "T = 0.03": replace(LABELS, temperature=0.03),
    "T = 0.07": replace(LABELS, temperature=0.07),
    "T = 0.1": replace(LABELS, temperature=0.1),
    "teacher's T = 0.1": replace(LABELS, teacher_temperature=0.1),
    "teacher's T = 0.07": replace(LABELS, teacher_temperature=0.07),
    "student's T = 0.07": replace(LABELS, temperature=0.07, teacher_temperature=0.05),
    "student's T = 0.1": replace(LABELS, temperature=0.1, teacher_temperature=0.05),
    "subsets of 2048": replace(LABELS, rows=2048),
    "1000 steps": replace(LABELS, steps=1000),
    "subsets of 2048, 1000 steps": replace(LABELS, **_LONG),
    "subsets of 2048, 1000 steps, rate 3e-3": replace(LABELS, **_LONG, rate=3e-3),
    "the same, λ = 0.2": replace(LABELS, **_LONG, label_weight=0.2),
    "the same, λ = 0.5": replace(LABELS, **_LONG, label_weight=0.5),
    "the same, T = 0.1": replace(LABELS, **_LONG, temperature=0.1),
    "the same, features as teacher too": replace(LABELS, **_LONG, teachers="e x"),
    "the same, centred": replace(LABELS, **_LONG, centred=True),
    "whole classes": replace(LABELS, whole_classes=True),
    "centred": replace(LABELS, centred=True),
    "one view": replace(LABELS, views=1),
    "views of an image apart": replace(LABELS, apart=True),
    "features as teacher too": replace(LABELS, teachers="e x"),
    "features as teacher alone": replace(LABELS, teachers="x"),
    "mixed rows": replace(LABELS, mixed=0.5),
    "classes moved, 0.5": replace(LABELS, moved=0.5),
    "classes moved, 1": replace(LABELS, moved=1.0),
    "share of the class 0.3": Idea(label_share=0.3),
    "share of the class 0.5": Idea(label_share=0.5),
    "class means, 0.3": Idea(smooth=0.3),
    "class means, 0.5": Idea(smooth=0.5),
    "class means, 0.3, and λ = 0.3": replace(LABELS, smooth=0.3),
    "hubs weigh less": replace(LABELS, hubs=0.5),
    "hidden layer": replace(LABELS, hidden=1024),
    "a second model teaches, joined": replace(LABELS, fused="joined"),
    "a second model teaches, apart": replace(LABELS, fused="apart"),
    "two models, embeddings joined": replace(LABELS, fused="joined", alone=True),
    "relaxed contrastive": replace(LABELS, loss="relaxed"),
    "stopped by held-out classes": replace(LABELS, stop=True, steps=1000),
    "start from PCA of features": replace(LABELS, start="features"),
    "start from PCA of features, rate 3e-3": replace(LABELS, start="features", rate=3e-3),
    "chosen": replace(CHOSEN, label_weight=0.3),
    "start from PCA of class means": replace(LABELS, start="class means"),
    "LDA as start, turned images, subsets of 2048": replace(LABELS, start="lda", also=("turned",), rows=2048),
    "embeddings alone": replace(LABELS, alone=True),
    "half way": replace(LABELS, kept=0.5),
    "turned images": replace(LABELS, also=("turned",)),
    "mixed images": replace(LABELS, also=("mixed",)),
    "turned and mixed images": replace(LABELS, also=("turned", "mixed")),
    "turned images, subsets of 1024": replace(LABELS, also=("turned",), rows=1024),
    "turned images, subsets of 2048": replace(LABELS, also=("turned",), rows=2048),
    "turned images, subsets of 2048, 1000 steps": replace(LABELS, also=("turned",), rows=2048, steps=1000),
    "turned and mixed images, subsets of 2048": replace(LABELS, also=("turned", "mixed"), rows=2048),
    "turned and mixed images, subsets of 2048, 1000 steps": replace(
        LABELS, also=("turned", "mixed"), rows=2048, steps=1000
    ),
    "turned images, subsets of 2048, student's T = 0.1": replace(
        LABELS, also=("turned",), rows=2048, temperature=0.1, teacher_temperature=0.05
    ),
    "turned images, subsets of 2048, λ = 0.5": replace(LABELS, also=("turned",), rows=2048, label_weight=0.5),
    "turned images, subsets of 2048, embeddings alone": replace(LABELS, also=("turned",), rows=2048, alone=True),
    "turned images, subsets of 2048, features as teacher too": replace(
        LABELS, also=("turned",), rows=2048, teachers="e x"
    ),
    "gallery's rows": replace(LABELS, also=("gallery",)),
}
IDEAS = {
    **{f"with labels: {name}": idea for name, idea in WITH.items()},
    **{f"without labels: {name}": idea for name, idea in WITHOUT.items()},
}


class Trial(NamedTuple):
    training: str
    objective: str
    seed: int


def tested(job: Trial, ideas: list[str], device: str, until: float, runs: Path) -> list[dict[str, Any]]:
    """Of one model: itself, those trained at the small sizes, and the ideas for which there is time."""
    setting = setting_of(job.training, runs, choosing=True, device=device)
    model, _ = train(setting, job.objective, LARGE, job.seed)
    test = embedded(model.eval(), setting.test_batches())
    maps_of = [way for way in ideas if way in IDEAS]
    data, further = _rows(model, setting, {also for way in maps_of for also in IDEAS[way].also})
    own = _nobody(len(test.features), 10**6, device)
    further["gallery"] = Data(*test, own, own)
    found = [(ITSELF, LARGE, retrieval(test.embeddings, setting.test_labels))] if ITSELF in ideas else []
    for size in SIZES if TRAINED in ideas else ():
        small, _ = train(setting, job.objective, size, job.seed)
        of_small = embedded(small.eval(), setting.test_batches()).embeddings
        found.append((TRAINED, size, retrieval(of_small, setting.test_labels)))
    fused, fused_test = data, test
    if any(IDEAS[way].fused for way in maps_of):
        second, _ = train(setting, job.objective, LARGE, job.seed + OTHER)
        views = embedded(second.eval(), *(setting.train_batches(view) for view in range(VIEWS)))
        fused = data._replace(e=joined(data.e, views.embeddings))
        theirs = embedded(second, setting.test_batches())
        fused_test = test._replace(embeddings=joined(test.embeddings, theirs.embeddings))
    starts: dict[Any, list[torch.Tensor]] = {}
    for way in maps_of:
        if time.time() > until:
            break
        torch.manual_seed(job.seed)
        maps, losses = _made(IDEAS[way], fused if IDEAS[way].fused else data, further, starts)
        with torch.no_grad():
            made = zip(maps(fused_test if IDEAS[way].fused else test), losses, strict=True)
            figures = [{**retrieval(z, setting.test_labels), "loss": loss} for z, loss in made]
        found += [(way, size, figure) for size, figure in zip(SIZES, figures, strict=True)]
    return [{**job._asdict(), "way": way, "size": size, **figures, **where(device)} for way, size, figures in found]


def _rows(model: nn.Sequential, setting: Setting, further: set[str]) -> tuple[Data, dict[str, Data]]:
    """Every view of the training images, and the further rows that are asked for."""
    device, labels = setting.device, setting.train_labels.to(setting.device)
    count, classes = len(labels), int(labels.max()) + 1

    views = embedded(model, *(setting.train_batches(view) for view in range(VIEWS)))
    data = Data(*views, labels.repeat(VIEWS), torch.arange(count, device=device).repeat(VIEWS))
    made = {}
    if "turned" in further:
        turned = embedded(model, *(setting.turned_batches(way) for way in range(TURNS)))
        of_turned = torch.cat([labels + classes * (way + 1) for way in range(TURNS)])
        made["turned"] = Data(*turned, of_turned, torch.arange(count * TURNS, device=device) + count)
    if "mixed" in further:
        mixed = embedded(model, *(setting.mixed_batches() for _ in range(VIEWS)))
        nobody = _nobody(len(mixed.features), 0, device)
        made["mixed"] = Data(*mixed, nobody, nobody)
    return data, made


def _nobody(count: int, after: int, device: torch.device | str) -> torch.Tensor:
    return -1 - after - torch.arange(count, device=device)


def _made(idea: Idea, data: Data, further: dict[str, Data], starts: dict) -> Learned:
    if not idea.stop:
        return learn(idea, data, further, starts)
    kept = data.labels % 5 > 0
    first = ~kept & (torch.arange(len(kept), device=kept.device) < len(kept) // VIEWS)
    rows, labels = Rows(data.x[first], data.e[first]), data.labels[first].cpu()

    @torch.no_grad()
    def judge(maps: Callable) -> float:
        return sum(retrieval(z, labels)["mean_average_precision_at_r"] for z in maps(rows))

    rest = Data(*(part[kept] for part in data))
    return learn(idea, rest._replace(labels=rest.labels.unique(return_inverse=True)[1]), further, starts, judge)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=OF_TRAINING)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--ideas", nargs="+", choices=[ITSELF, TRAINED, *IDEAS], default=[ITSELF, TRAINED, *IDEAS])
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no idea after that time")
    add_arguments(parser, TRIED)
    chosen = parser.parse_args()
    if chosen.measure:
        here = where(chosen.device)["device"]
        there = [record for record in read(chosen.results) if record["device"] == here]
        known = {(*(record[name] for name in Trial._fields), record["way"]) for record in there}
        jobs = [Trial(t, o, s) for s in chosen.seeds for t in chosen.trainings for o in chosen.objectives]
        missing = {job: [idea for idea in chosen.ideas if (*job, idea) not in known] for job in jobs}
        until = time.time() + 60 * chosen.minutes
        jobs_with_ideas = [(job, ideas) for job, ideas in missing.items() if ideas]
        in_parallel(chosen, tested, jobs_with_ideas, chosen.device, until)
    print(tried(read(chosen.results)))


if __name__ == "__main__":
    main()
