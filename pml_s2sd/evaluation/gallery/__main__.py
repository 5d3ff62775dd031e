"""Evaluate embeddings in .npy files, in a gallery that need not fit into memory; a killed run goes on.

    python -m pml_s2sd.evaluation.gallery --queries q.npy --query-labels ql.npy --gallery 'g-*.npy' \\
        --gallery-labels 'gl-*.npy' --folder FOUND
    python -m pml_s2sd.evaluation.gallery … --folder INDEX --index ivfpq --effort 64

Embeddings are float16, float32 or float64 of shape (n, d), labels numbers of shape (n,). The gallery is one file or
several, its labels one file or one a shard. The distance is the Euclidean one between rows as they are: save normalised
rows. What has been found, or the index, is kept in --folder: the same command goes on with it. The metrics are printed,
and written to FOLDER/evaluation.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..._argument_checks import check_int
from ..._matrices import mapped
from ..._text import print_text
from ...whole_file import check_output
from .._given import as_embeddings, as_labels
from ..accuracy import BY_QUERY, RetrievalAccuracyCalculator
from ..evaluate_folder import write_results
from . import Gallery, GalleryKNN, OnDiskKNN


def evaluate(settings: argparse.Namespace) -> dict[str, Any]:
    """What the command does, but for printing and writing the results.

    Raises:
        FileNotFoundError, TypeError, ValueError: naming what cannot be used, what was expected and what to do.
    """
    if settings.k is not None:
        check_int("--k", settings.k, at_least=1)
    gallery = Gallery(settings.gallery[0] if len(settings.gallery) == 1 else settings.gallery)
    paths = settings.gallery_labels
    labels = gallery.read_labels(paths[0] if len(paths) == 1 else paths)
    queries = as_embeddings(str(settings.queries), mapped("queries", settings.queries))
    query_labels = as_labels(str(settings.query_labels), mapped("queries' labels", settings.query_labels))
    knn: GalleryKNN | OnDiskKNN
    if settings.index == "exact":
        knn = GalleryKNN(settings.folder, processes=settings.processes)
    else:
        knn = OnDiskKNN(
            settings.folder,
            settings.index,
            settings.effort,
            code_size=settings.code_size,
            rerank=settings.rerank,
            processes=settings.processes,
        )
    metrics = settings.metrics or [*(f"recall_at_{at}" for at in settings.recall_at), "r_precision", BY_QUERY[3]]
    calculator = RetrievalAccuracyCalculator(
        metrics,
        k="max_bin_count" if settings.k is None else settings.k,
        device=torch.device("cpu"),
        knn_func=knn,
        recall_at=settings.recall_at,
    )
    found = calculator.get_accuracy(queries, query_labels, gallery, labels)
    index: dict[str, Any] = {"kind": settings.index}
    if isinstance(knn, OnDiskKNN):
        index |= {"effort": knn.effort, "code_size": knn.code_size, "rerank": knn.rerank, "recall": knn.recall}
    return {
        "queries": len(queries),
        "references": len(gallery),
        "shards": len(gallery.shards),
        "embedding_size": gallery.shape[1],
        "index": index,
        "metrics": found,
    }


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pml_s2sd.evaluation.gallery",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--queries", type=Path, required=True, metavar="FILE")
    add("--query-labels", type=Path, required=True, metavar="FILE")
    add("--gallery", nargs="+", required=True, metavar="FILE", help="or one pattern, in quotes")
    add("--gallery-labels", nargs="+", required=True, metavar="FILE", help="or one pattern, in quotes")
    add("--folder", type=Path, required=True, help="for what has been found, or the index")
    add(
        "--index",
        choices=("exact", "ivf", "ivfpq"),
        default="exact",
        help="exact search, or an approximate one; prints the recall it costs (default: exact)",
    )
    add("--effort", type=int, default=64, help="lists visited a query (default: %(default)s)")
    add("--code-size", type=int, metavar="BYTES", help="of a row in ivfpq (default: a fourth of the embedding size)")
    add("--rerank", type=int, default=10, help="candidates of ivfpq a neighbour, whose rows are read (default: 10)")
    add("--processes", type=int, default=1, help="default: %(default)s")
    add("--recall-at", type=int, nargs="+", default=[1, 2, 4, 8], metavar="K", help="default: 1 2 4 8")
    add("--metrics", nargs="+", metavar="NAME", help="default: recall_at_K, r_precision, mean_average_precision_at_r")
    add("--k", type=int, help="neighbours that PML's metrics look at (default: the size of the largest class)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    settings = parse_arguments(arguments)
    output = settings.folder / "evaluation.json"
    try:
        if output.exists():
            check_output(output)
        results = evaluate(settings)
        write_results(output, results)
    except (OSError, TypeError, ValueError) as error:
        raise SystemExit(f"evaluation.gallery: {error}") from error
    print_text(f"\n{results['queries']:,} queries in {results['references']:,} of {results['shards']} files")
    for name, value in results["metrics"].items():
        print_text(f"{name:32} {value:.4f}")
    print_text(f"\nwritten to {output}")


if __name__ == "__main__":
    main()
