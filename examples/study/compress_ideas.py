"""The ideas that were tried for `compress`: how a map is made."""

from __future__ import annotations

from dataclasses import dataclass, replace

from study.pretrained import VIEWS


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
