"""A faiss index of 64 dimensions that answers queries of 512: its size, time and what it finds, before and after.

    python examples/compressed_index.py                                     # a million rows that are made up
    python examples/compressed_index.py --embeddings mine.npy --size 128 --index HNSW32

The map is trained on the rows themselves (`pml_s2sd.compress`) and stands before the index (`compressed_index`), so
that training, adding and searching go on with the embeddings as they are. --index is what faiss.index_factory takes:
IVF1024,Flat; HNSW32; IVF1024,SQ8 and so on. The last rows of the file are the queries, and not in the index. What is
counted is the share of the exact search's 10 nearest, in the original space, that are among the first 10, and the
first 100, found.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import torch
from tqdm import tqdm

from pml_s2sd import compress
from pml_s2sd.compress import compressed_index

BLOCK_ROWS = 20_000
NEAREST, DEEPER = 10, 100
OF_A_CLASS, NOISE, DECAY = 10, 0.8, 0.8


class Found(NamedTuple):
    """What an index costs and finds."""

    megabytes: float
    build_seconds: float
    query_milliseconds: float
    among_10: float
    among_100: float


def made_up(path: Path, rows: int, columns: int) -> None:
    """Write embeddings: classes of ten about centres whose directions are used ever less, the order drawn at random."""
    draw = np.random.default_rng(0)
    scale = np.arange(1, columns + 1, dtype=np.float32) ** -DECAY
    centres = draw.standard_normal((-(-rows // OF_A_CLASS), columns), dtype=np.float32)
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, columns))
    of_class = draw.permutation(rows) // OF_A_CLASS
    for start in tqdm(range(0, rows, BLOCK_ROWS), desc="making up rows", delay=3, leave=False):
        block = file[start : start + BLOCK_ROWS]
        block[:] = centres[of_class[start : start + BLOCK_ROWS]]
        block += NOISE * draw.standard_normal(block.shape, dtype=np.float32)
        block *= scale
    file.flush()


def unit(rows: np.ndarray) -> np.ndarray:
    return torch.nn.functional.normalize(torch.from_numpy(rows.astype(np.float32))).numpy()


def measure(index: faiss.Index, gallery: np.ndarray, queries: np.ndarray, exact: np.ndarray) -> Found:
    """Build the index over the gallery, search it, and compare with the exact neighbours.

    Args:
        index: empty, of the original dimensions.
        gallery: (N, k), read a block at a time.
        queries: (Q, k).
        exact: (Q, 10), the rows of the gallery that are nearest.
    """
    started = time.perf_counter()
    if not index.is_trained:
        sample = np.random.default_rng(0).choice(len(gallery), min(len(gallery), 100_000), replace=False)
        index.train(unit(gallery[np.sort(sample)]))
    for start in tqdm(range(0, len(gallery), BLOCK_ROWS), desc="adding", delay=3, leave=False):
        index.add(unit(gallery[start : start + BLOCK_ROWS]))
    built = time.perf_counter()
    found = index.search(queries, min(DEEPER, len(gallery)))[1]
    searched = time.perf_counter()
    shares = [(exact[:, :, None] == found[:, None, :depth]).any(axis=2).mean() for depth in (NEAREST, DEEPER)]
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "index")
        faiss.write_index(index, path)
        megabytes = os.path.getsize(path) / 1e6
    return Found(megabytes, built - started, 1e3 * (searched - built) / len(queries), *map(float, shares))


def exact_neighbours(gallery: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(Q, 10), by cosine, over the whole gallery a block at a time."""
    heap = faiss.ResultHeap(len(queries), NEAREST, keep_max=True)
    for start in tqdm(range(0, len(gallery), BLOCK_ROWS), desc="exact search", delay=3, leave=False):
        block = unit(gallery[start : start + BLOCK_ROWS])
        similarities, rows = faiss.knn(queries, block, min(NEAREST, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        heap.add_result(similarities, rows + start)
    heap.finalize()
    return heap.I


def compare(path: Path, size: int, kind: str, effort: int, queries: int) -> dict[str, Found]:
    """The index over the original embeddings of a file, and over the compressed ones."""
    embeddings = np.load(path, mmap_mode="r")
    columns = embeddings.shape[1]
    gallery, asked = embeddings[:-queries], unit(embeddings[-queries:])
    layer = compress(path, size, rows=np.arange(len(gallery)))
    exact = exact_neighbours(gallery, asked)
    indices = {
        f"{columns} dimensions": faiss.index_factory(columns, kind, faiss.METRIC_INNER_PRODUCT),
        f"compressed to {size}": compressed_index(layer, faiss.index_factory(size, kind, faiss.METRIC_INNER_PRODUCT)),
    }
    found = {}
    for name in list(indices):
        index = indices.pop(name)  # one in memory at a time
        if "IVF" in kind:
            faiss.extract_index_ivf(index).nprobe = effort
        elif "HNSW" in kind:
            faiss.downcast_index(getattr(index, "index", index)).hnsw.efSearch = effort
        found[name] = measure(index, gallery, asked, exact)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--embeddings", type=Path, metavar="FILE", help="a .npy file of shape (N, k) (default: rows that are made up)")
    add("--rows", type=int, default=1_000_000, help="made up (default: %(default)s)")
    add("--columns", type=int, default=512, help="made up (default: %(default)s)")
    add("--size", type=int, default=64, help="dimensions that are stored (default: %(default)s)")
    add("--index", default="IVF1024,Flat", metavar="FACTORY", help="default: %(default)s")
    add(
        "--effort", type=int, default=64, help="lists or candidates visited a query by IVF, HNSW (default: %(default)s)"
    )
    add("--queries", type=int, default=1000, help="rows kept as queries (default: %(default)s)")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = settings.embeddings
        if path is None:
            path = Path(folder) / "made_up.npy"
            made_up(path, settings.rows + settings.queries, settings.columns)
        found = compare(path, settings.size, settings.index, settings.effort, settings.queries)
    print(f"{settings.index:22} {'size, MB':>10} {'build, s':>9} {'query, ms':>10} {'of 10':>7} {'in 100':>7}")
    for name, of in found.items():
        print(
            f"{name:22} {of.megabytes:10,.1f} {of.build_seconds:9.1f} {of.query_milliseconds:10.3f} "
            f"{of.among_10:7.3f} {of.among_100:7.3f}"
        )


if __name__ == "__main__":
    main()
