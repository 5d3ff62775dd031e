"""The study's embeddings, stored in fewer bytes: what each code retrieves.

Codes are faiss's, trained on the training images. What is stored is coded, what is searched for is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import faiss
import torch
from codes import A_BYTE, Space, by_faiss, retrieval, unit

if TYPE_CHECKING:
    from study.cuts import Cut, Trained

CODED_SIZES = (16, 32, 64, 128)
"""That models are trained at, and that the large one is cut to."""
FACTORIES: dict[str, Callable[[int], str]] = {
    "float32": lambda d: "Flat",
    "float16": lambda d: "SQfp16",
    "int8": lambda d: "SQ8",
    "1 bit": lambda d: "LSHr",
    **{f"PQ, {n} a byte": lambda d, n=n: f"PQ{d // n}x8np" for n in (4, 8, 16, 32, 64)},
    **{f"OPQ, {n} a byte": lambda d, n=n: f"OPQ{d // n}_{A_BYTE * d // n},PQ{d // n}x8np" for n in (32, 64)},
}
"""What `faiss.index_factory` takes, of d dimensions.

1 bit: the sign of each dimension after a random rotation. PQ, OPQ: the dimensions that share a byte; without polysemous
training, which decodes to the same.
"""
A_DIMENSION = ("float32", "float16", "int8", "1 bit")
CODES = (*A_DIMENSION, "PQ, 4 a byte", "PQ, 8 a byte")
CODES_OF_LARGE = (*A_DIMENSION, "PQ, 16 a byte", "PQ, 32 a byte", "PQ, 64 a byte")
"""Of 1,024 dimensions, to so many bytes as fewer dimensions take."""
OPQ_OF_LARGE = ("OPQ, 32 a byte", "OPQ, 64 a byte")
"""It takes longer than to train a head."""

Projected = tuple[torch.Tensor, torch.Tensor]
"""Training rows and test rows, (N, d) and (M, d)."""


def coded_cut(cut: str, code: str) -> str:
    """The name of a cut that is stored so: "PCA, int8"."""
    return f"{cut}, {code}" if cut else code


def figures(rows: Projected, labels: torch.Tensor, code: str) -> dict[str, float]:
    """Recall@1 and MAP@R in percent of the test rows, each among the others as they are stored; bytes a vector.

    Args:
        rows: the first train the code, the second are retrieved by cosine.
        labels: of the test rows.
    """
    space = Space(*(unit(part.numpy(force=True)) for part in rows))
    text = FACTORIES[code](space.train.shape[1])
    metric = faiss.METRIC_L2 if "PQ" in code else faiss.METRIC_INNER_PRODUCT
    recall, at_r = retrieval(space.test, by_faiss(text)(space), labels.numpy(), metric)
    return {
        "precision_at_1": round(100 * recall, 3),
        "mean_average_precision_at_r": round(100 * at_r, 3),
        "bytes": faiss.index_factory(space.train.shape[1], text).sa_code_size(),
    }


def coded(
    cut: str, project: Callable[[Trained], Iterable[Projected]], codes: Iterable[str] = CODES
) -> dict[str, Callable[[Trained], Cut]]:
    """Cuts by name, one a code.

    Args:
        cut: what is coded.
        project: makes it of a trained model, of each size.
        codes: of `FACTORIES`.
    """

    def stored(code: str) -> Callable[[Trained], Cut]:
        def of_trained(of: Trained) -> Cut:
            for rows in project(of):
                yield rows[0].shape[1], figures(rows, of.setting.test_labels, code)

        return of_trained

    return {coded_cut(cut, code): stored(code) for code in codes}
