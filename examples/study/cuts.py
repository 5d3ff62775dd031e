"""What is made of a trained model: its own embeddings, and smaller ones, on the classes that it was not trained on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import nn

from pml_s2sd import compress, consolidate
from pml_s2sd.embedder import Embedder
from pml_s2sd.training_features import turned_classes
from study.coded import CODED_SIZES, FACTORIES, Projected, coded
from study.pretrained import VIEWS
from study.settings import Setting
from study.training import PREFIXES, retrieval

SIZES = (8, 16, 32, 64)
ITSELF = ""
SHRINKAGE = 0.9
"""Of linear discriminant analysis: the best of 0.1, 0.5 and 0.9 on held-out classes; of features it was behind."""
WITH_LABELS = "compressed with labels"
WITH_TURNED = "compressed with labels, turned images"
Cut = Iterator[tuple[int, dict[str, float]]]
"""Of each size its figures."""


class Rows(NamedTuple):
    """Features (N, F), pooled, and the embeddings of them, (N, k), normalised."""

    features: torch.Tensor
    embeddings: torch.Tensor


@torch.no_grad()
def embedded(model: nn.Sequential, *views: Sequence[torch.Tensor]) -> Rows:
    """Of batches, or several views of them one after the other."""
    trunk, embedder = model
    maps = [trunk(batch) for batches in views for batch in batches]
    features = torch.cat([x.mean((2, 3)) if x.dim() == 4 else x for x in maps])
    return Rows(features, nn.functional.normalize(embedder(features)))


class Trained:
    """A model (trunk, embedder) in eval mode, and what it makes of the images."""

    def __init__(self, model: nn.Sequential, setting: Setting, seed: int) -> None:
        self.model, self.setting, self.seed = model.eval(), setting, seed
        self.test = embedded(model, setting.test_batches())
        self.labels = setting.train_labels.repeat(VIEWS).to(setting.device)
        self._maps: dict[tuple[bool, ...], dict[int, nn.Linear]] = {}

    @cached_property
    def rows(self) -> Rows:
        """Of every view of the training images."""
        return embedded(self.model, *(self.setting.train_batches(view) for view in range(VIEWS)))

    @cached_property
    def with_turned(self) -> tuple[Rows, torch.Tensor]:
        """Of turned images too, each way a class of its own, and all labels."""
        ways = len(self.setting.turned)
        turned = embedded(self.model, *(self.setting.turned_batches(way) for way in range(ways)))
        of_turned = turned_classes(self.setting.train_labels, torch.arange(1, ways + 1)[:, None]).flatten()
        rows = Rows(*(torch.cat(pair) for pair in zip(self.rows, turned, strict=True)))
        return rows, torch.cat([self.labels, of_turned.to(self.labels)])

    @cached_property
    def principal(self) -> Projected:
        """The embeddings along the principal axes of those of the training images: of these, and of the test images."""
        known = self.rows.embeddings.cpu().numpy()
        axes = PCA(svd_solver="covariance_eigh").fit(known)
        known, test = (axes.transform(rows) for rows in (known, self.test.embeddings.cpu().numpy()))
        return torch.from_numpy(known).to(self.setting.device), torch.from_numpy(test).to(self.setting.device)

    def maps(
        self, sizes: Sequence[int], *, with_labels: bool = False, turned: bool = False, features: bool = True
    ) -> dict[int, nn.Linear]:
        """`compress`'s, of normalised features or embeddings; each is trained once, those of one call side by side."""
        made = self._maps.setdefault((with_labels, turned, features), {})
        wanted = [size for size in sizes if size not in made]
        if wanted:
            learned, labels = self.with_turned if turned else (self.rows, self.labels)
            made |= compress(
                learned.embeddings,
                wanted,
                labels=labels if with_labels else None,
                features=learned.features if features else None,
                seed=self.seed,
            )
        return {size: made[size] for size in sizes}

    def figures(self, embeddings: torch.Tensor, **more: float) -> dict[str, float]:
        return {**retrieval(embeddings, self.setting.test_labels), **more}


def itself(of: Trained) -> Cut:
    yield of.test.embeddings.shape[1], of.figures(of.test.embeddings)


def first(of: Trained) -> Cut:
    """The first dimensions."""
    for size in PREFIXES:
        yield size, of.figures(of.test.embeddings[:, :size])


def pca(of: Trained, whiten: bool = False) -> Cut:
    """Of the embeddings; whitened: each axis divided by its standard deviation."""
    found = PCA(max(SIZES), svd_solver="covariance_eigh", whiten=whiten).fit(of.rows.embeddings.cpu().numpy())
    projected = torch.from_numpy(found.transform(of.test.embeddings.cpu().numpy())).to(of.setting.device)
    for size in SIZES:
        yield size, of.figures(projected[:, :size])


def lda(of: Trained) -> Cut:
    """Linear discriminant analysis of the embeddings; it has one axis fewer than there are classes."""
    x, test = (rows.embeddings.cpu().double().numpy() for rows in (of.rows, of.test))
    found = LinearDiscriminantAnalysis(solver="eigen", shrinkage=SHRINKAGE).fit(x, of.labels.cpu().numpy())
    projected = torch.from_numpy(found.transform(test)).float().to(of.setting.device)
    for size in SIZES:
        if size <= projected.shape[1]:
            yield size, of.figures(projected[:, :size])


def compressed(of: Trained, with_labels: bool = False, turned: bool = False, features: bool = True) -> Cut:
    started = time.perf_counter()
    sizes = of.setting.kind.made_sizes
    maps = of.maps(sizes, with_labels=with_labels, turned=turned, features=features)
    seconds = round(time.perf_counter() - started, 2)
    x = nn.functional.normalize(of.test.features if features else of.test.embeddings)
    for size in sizes:
        with torch.no_grad():
            yield size, of.figures(maps[size](x), seconds=seconds)


def whole(of: Trained) -> Iterator[Projected]:
    """To be coded, as are the following: the embeddings themselves."""
    yield of.rows.embeddings, of.test.embeddings


def principal(of: Trained) -> Iterator[Projected]:
    for size in CODED_SIZES:
        yield of.principal[0][:, :size], of.principal[1][:, :size]


@torch.no_grad()
def mapped(of: Trained, turned: bool = False) -> Iterator[Projected]:
    """Compressed with labels."""
    for layer in of.maps(CODED_SIZES, with_labels=True, turned=turned).values():
        yield layer(nn.functional.normalize(of.rows.features)), layer(nn.functional.normalize(of.test.features))


def consolidated(of: Trained, embedder: Embedder | None = None, with_labels: bool = True, turned: bool = False) -> Cut:
    rows, labels = of.with_turned if turned else (of.rows, of.labels)
    started = time.perf_counter()
    known = labels if with_labels else None
    deployed = consolidate(embedder or of.model[1], rows.features, known, size=list(SIZES), seed=of.seed)
    seconds = round(time.perf_counter() - started, 2)
    for size in SIZES:
        with torch.no_grad():
            yield size, of.figures(deployed[size](of.test.features), seconds=seconds)


def labels_alone(of: Trained) -> Cut:
    """Without a teacher: of an embedder that finds no two samples alike, so that [y = y'] is all that is kept."""
    features = of.test.features.shape[1]
    head = nn.Linear(features, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    blind = Embedder(features, 1, head.to(of.setting.device))
    yield from consolidated(of, blind, turned=of.setting.kind.pictures != "photographs")


COMPRESSED: dict[str, Callable[[Trained], Cut]] = {
    "compressed": compressed,
    "compressed, embeddings alone": lambda of: compressed(of, features=False),
    WITH_LABELS: lambda of: compressed(of, with_labels=True),
    WITH_TURNED: lambda of: compressed(of, with_labels=True, turned=True),
}
CONSOLIDATED: dict[str, Callable[[Trained], Cut]] = {
    "consolidated, without labels": lambda of: consolidated(of, with_labels=False),
    "consolidated": consolidated,
    "consolidated, turned images": lambda of: consolidated(of, turned=True),
}
"""With labels, where nothing else is said."""
CUTS: dict[str, Callable[[Trained], Cut]] = {
    ITSELF: itself,
    "first": first,
    "PCA": pca,
    "PCA whitened": lambda of: pca(of, whiten=True),
    "LDA": lda,
    **COMPRESSED,
    **CONSOLIDATED,
    "labels alone": labels_alone,
    **coded(ITSELF, whole, FACTORIES),
    **coded("PCA", principal),
    **coded(WITH_LABELS, mapped),
    **coded(WITH_TURNED, lambda of: mapped(of, turned=True)),
}
