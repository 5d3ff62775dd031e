"""Galleries in files: exact search, the index on the disk, the command; against numpy, and against PML in memory."""

import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from pml_s2sd.evaluation import Gallery, GalleryKNN, OnDiskKNN, RetrievalAccuracyCalculator
from pml_s2sd.evaluation.gallery import _exact, _index, _shards
from pml_s2sd.evaluation.gallery.__main__ import main
from pml_s2sd.evaluation.gallery._processes import in_processes, started

CPU = torch.device("cpu")
ROWS, D, CLASSES = (700, 1, 0, 1300), 12, 40
METRICS = ("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_reciprocal_rank")


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Uneven shards, one empty, of two dtypes, with labels; and queries. Pieces and blocks are small."""
    monkeypatch.setattr(_shards, "PIECE_ROWS", 500)
    monkeypatch.setattr(_shards, "BLOCK_BYTES", 4 * D * 130)
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((CLASSES, D))
    labels = generator.integers(CLASSES, size=sum(ROWS))
    x = (centres[labels] + 1.1 * generator.standard_normal((sum(ROWS), D))).astype(np.float16)
    bounds = np.cumsum((0, *ROWS))
    for i in range(len(ROWS)):
        rows = x[bounds[i] : bounds[i + 1]]
        np.save(tmp_path / f"g-{i}.npy", rows.astype(np.float32) if i == 1 else rows)
        np.save(tmp_path / f"labels-{i}.npy", labels[bounds[i] : bounds[i + 1]])
    of_queries = generator.integers(CLASSES, size=60)
    queries = (centres[of_queries] + 1.1 * generator.standard_normal((60, D))).astype(np.float32)
    np.save(tmp_path / "q.npy", queries)
    np.save(tmp_path / "ql.npy", of_queries)
    return tmp_path, torch.from_numpy(queries), torch.from_numpy(of_queries), x.astype(np.float32), labels


def nearest(query, x, k):
    """By float64 distances and a sort."""
    distances = ((query[:, None].astype(np.float64) - x[None]) ** 2).sum(axis=2)
    order = distances.argsort(axis=1)[:, :k]
    return np.take_along_axis(distances, order, axis=1), order


def test_a_gallery_is_the_rows_of_its_files_in_their_order(saved):
    folder, _, _, x, labels = saved
    gallery = Gallery(folder / "g-*.npy")
    assert gallery.shape == x.shape and len(gallery) == len(x)
    assert torch.equal(gallery.read_labels(folder / "labels-*.npy"), torch.from_numpy(labels))
    np.testing.assert_array_equal(gallery[690:710], x[690:710])
    rows = np.array([0, 5, 699, 700, 701, 2000])
    np.testing.assert_array_equal(gallery.take(rows), x[rows])
    pieces = gallery.pieces()
    assert [(piece.start, piece.stop) for piece in pieces] == [
        (0, 500),
        (500, 700),
        (700, 701),
        (701, 1201),
        (1201, 1701),
        (1701, 2001),
    ]
    blocks = [block for piece in pieces for block in gallery.blocks(piece)]
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in blocks]), x)
    assert max(len(rows) for _, rows in blocks) == 130
    assert [first for first, _ in blocks] == np.cumsum([0, *(len(rows) for _, rows in blocks)])[:-1].tolist()
    other_order = Gallery([folder / "g-3.npy", folder / "g-0.npy"])
    np.testing.assert_array_equal(other_order[1298:1302], np.concatenate([x[-2:], x[:2]]))


@pytest.mark.parametrize("k", [1, 7, 600])
def test_exact_search_finds_what_sorting_finds(saved, k):
    folder, queries, _, x, _ = saved
    distances, indices = GalleryKNN()(queries, k, Gallery(folder / "g-*.npy"))
    expected_distances, expected = nearest(queries.numpy(), x, k)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-4, atol=1e-5)
    assert (indices.numpy() == expected).mean() > 0.999  # float32 may swap neighbours that are as far
    np.testing.assert_allclose(
        ((queries.numpy()[:, None] - x[indices]) ** 2).sum(axis=2), expected_distances, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("knn", [lambda folder: GalleryKNN(), lambda folder: OnDiskKNN(folder / "index", "ivf", 44)])
def test_metrics_equal_those_of_pml_in_memory(saved, knn):
    folder, queries, of_queries, x, labels = saved
    gallery = Gallery(folder / "g-*.npy")
    calculator = RetrievalAccuracyCalculator(
        (*METRICS, "recall_at_4"), device=CPU, knn_func=knn(folder), recall_at=(4,)
    )
    found = calculator.get_accuracy(queries, of_queries, gallery, gallery.read_labels(folder / "labels-*.npy"))
    by_pml = AccuracyCalculator(METRICS, device=CPU, k="max_bin_count")
    expected = by_pml.get_accuracy(queries, of_queries, torch.from_numpy(x), torch.from_numpy(labels))
    assert 0.1 < expected["precision_at_1"] < 0.9
    assert {name: found[name] for name in METRICS} == pytest.approx(expected, abs=1e-6)
    neighbours = labels[nearest(queries.numpy(), x, 4)[1]]
    assert found["recall_at_4"] == pytest.approx((neighbours == of_queries.numpy()[:, None]).any(axis=1).mean())


def test_queries_that_are_the_first_rows_do_not_find_themselves(saved):
    folder, _, _, x, labels = saved
    gallery, y = Gallery(folder / "g-*.npy"), torch.from_numpy(labels)
    query = torch.from_numpy(x[:50])
    calculator = RetrievalAccuracyCalculator(METRICS, device=CPU, knn_func=GalleryKNN())
    found = calculator.get_accuracy(query, y[:50], gallery, y, ref_includes_query=True)
    by_pml = AccuracyCalculator(METRICS, device=CPU, k="max_bin_count")
    assert found == pytest.approx(by_pml.get_accuracy(query, y[:50], torch.from_numpy(x), y, True), abs=1e-6)
    indices = GalleryKNN()(query, 3, gallery, ref_includes_query=True)[1].numpy()
    np.testing.assert_array_equal(indices, nearest(x[:50], x, 4)[1][:, 1:])
    with pytest.raises(ValueError, match=r"the first len.query. references, and their labels, must be the queries"):
        calculator.get_accuracy(query + 1, y[:50], gallery, y, ref_includes_query=True)


def test_more_neighbours_than_rows_are_minus_one(tmp_path):
    np.save(tmp_path / "g.npy", np.array([[0.0], [2.0], [5.0]], dtype=np.float16))
    gallery = Gallery(tmp_path / "g.npy")
    for knn in (GalleryKNN(), OnDiskKNN(tmp_path / "index", "ivf")):
        distances, indices = knn(torch.tensor([[1.5]]), 5, gallery)
        assert indices.tolist() == [[1, 0, 2, -1, -1]]
        assert distances.tolist() == [[0.25, 2.25, 12.25, torch.inf, torch.inf]]
    calculator = RetrievalAccuracyCalculator(("recall_at_8",), device=CPU, knn_func=GalleryKNN())
    assert calculator.get_accuracy([[1.5]], [7], gallery, [1, 2, 7]) == {"recall_at_8": 1.0}


def test_an_index_of_codes_reranked_finds_what_its_estimates_miss(saved, capsys):
    folder, queries, _, x, _ = saved
    gallery = Gallery(folder / "g-*.npy")
    expected_distances, expected = nearest(queries.numpy(), x, 5)
    shares = {}
    for rerank in (1, 10):
        knn = OnDiskKNN(folder / "index", effort=44, code_size=2, rerank=rerank)
        distances, indices = knn(queries, 5, gallery)
        here = zip(indices.tolist(), expected.tolist(), strict=True)
        shares[rerank] = sum(len(set(a) & set(b)) for a, b in here) / expected.size
        assert knn.recall == pytest.approx(shares[rerank])
        assert f"ivfpq: {knn.recall:.3f} of the 5 nearest" in capsys.readouterr().out
        computed = ((queries.numpy()[:, None] - x[indices]) ** 2).sum(axis=2)
        np.testing.assert_allclose(distances, computed, rtol=1e-5)
    assert shares[1] < 0.6 and shares[10] > 0.9
    everything = OnDiskKNN(folder / "index", effort=44, code_size=2, rerank=500)(queries, 5, gallery)
    np.testing.assert_array_equal(everything[1], expected)
    np.testing.assert_allclose(everything[0], expected_distances, rtol=1e-5)
    assert not list((folder / "index").glob("piece-*"))
    assert (folder / "index" / "lists.ivfdata").stat().st_size >= len(x) * (2 + 8)


def test_an_index_can_be_moved_and_is_refused_when_cut_short(saved):
    folder, queries, _, _, _ = saved
    gallery = Gallery(folder / "g-*.npy")
    made = OnDiskKNN(folder / "index", effort=10)(queries, 5, gallery)
    (folder / "index").rename(folder / "moved")
    moved = OnDiskKNN(folder / "moved", effort=10)(queries, 5, gallery)
    assert all(torch.equal(one, two) for one, two in zip(made, moved, strict=True))
    lists = folder / "moved" / "lists.ivfdata"
    size = lists.stat().st_size
    (folder / "moved").rename(folder / "again")
    with (folder / "again" / lists.name).open("r+b") as file:
        file.truncate(size - 1)
    with pytest.raises(
        ValueError, match=rf"ivfdata is cut short: expected {size:,} bytes, it has {size - 1:,}; remove"
    ):
        OnDiskKNN(folder / "again", effort=10)(queries, 5, gallery)
    (folder / "again" / lists.name).unlink()
    (folder / "again").rename(folder / "last")
    with pytest.raises(FileNotFoundError, match=r"no file .*lists.ivfdata, which holds the lists of index.faiss"):
        OnDiskKNN(folder / "last", effort=10)(queries, 5, gallery)


@pytest.mark.slow
def test_several_processes_find_the_same(saved):
    folder, queries, _, _, _ = saved
    gallery = Gallery(folder / "g-*.npy")
    exact = [GalleryKNN(processes=processes)(queries, 6, gallery) for processes in (1, 2)]
    assert all(torch.equal(one, two) for one, two in zip(*exact, strict=True))
    queries = queries.repeat(5, 1)  # more than one block
    approximate = [
        OnDiskKNN(folder / f"index-{processes}", effort=10, rerank=5, processes=processes)(queries, 6, gallery)
        for processes in (1, 2)
    ]
    assert all(torch.equal(one, two) for one, two in zip(*approximate, strict=True))
    broken = np.full((9, D), np.nan, dtype=np.float16)
    np.save(folder / "g-2.npy", broken)
    with pytest.raises(ValueError, match=r"g-2.npy holds rows that are NaN"):
        GalleryKNN(processes=2)(queries, 6, Gallery(folder / "g-*.npy"))


def in_a_fork(function):
    """A process that has imported everything."""
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    return process


@pytest.mark.parametrize("kind", ["exact", "ivfpq"])
def test_a_killed_run_goes_on_to_the_same_result(saved, kind, monkeypatch):
    folder, queries, _, _, _ = saved
    gallery = Gallery(folder / "g-*.npy")
    monkeypatch.setattr(_exact, "NOTED_EVERY", 0.0)
    module, name = (_exact, "nearest_in_piece") if kind == "exact" else (_index, "add_piece")
    whole = getattr(module, name)
    done, says_done = multiprocessing.Pipe(duplex=False)

    def searched(kept):
        knn = GalleryKNN(folder / kept) if kind == "exact" else OnDiskKNN(folder / kept, effort=10)
        return knn(queries, 5, gallery)

    def slow(task):
        result = whole(task)
        says_done.send("one")
        time.sleep(0.3)
        return result

    monkeypatch.setattr(module, name, slow)
    run = in_a_fork(lambda: searched("kept"))
    assert [done.poll(60) and done.recv() for _ in range(3)] == ["one"] * 3
    run.kill()
    run.join()
    assert run.exitcode == -signal.SIGKILL

    tasks = []
    monkeypatch.setattr(module, name, lambda task: (tasks.append(task), whole(task))[1])
    made = searched("kept")
    assert len(tasks) in (3, 4)  # of six pieces, two or three were kept
    assert all(torch.equal(one, two) for one, two in zip(made, searched("anew"), strict=True))


@pytest.mark.slow
def test_workers_end_with_a_process_that_is_killed():
    pids, says_pid = multiprocessing.Pipe(duplex=False)

    def work():
        started.cache_clear()  # those of the process that was forked are not this one's
        started(2, 1).submit(time.sleep, 0).result()
        says_pid.send(list(started(2, 1)._processes))
        list(in_processes(time.sleep, [60, 60], 2))

    run = in_a_fork(work)
    assert pids.poll(60)
    workers = pids.recv()
    assert workers
    run.kill()
    run.join()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(map(alive, workers)):
        time.sleep(0.05)
    assert not any(map(alive, workers))


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{process}/stat") as file:
        return file.read().split(")")[1].split()[0] != "Z"


def test_what_has_been_found_is_read_again(saved, monkeypatch):
    folder, queries, _, _, _ = saved
    gallery = Gallery(folder / "g-*.npy")
    first = GalleryKNN(folder / "kept")(queries, 5, gallery)
    monkeypatch.setattr(_exact, "nearest_in_piece", None)
    again = GalleryKNN(folder / "kept")(queries, 5, Gallery(folder / "g-*.npy"))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    with pytest.raises(TypeError):  # other queries have to be searched
        GalleryKNN(folder / "kept")(queries + 1, 5, gallery)


def test_a_folder_belongs_to_one_gallery_and_setting(saved):
    folder, queries, _, x, _ = saved
    GalleryKNN(folder / "kept")(queries, 5, Gallery(folder / "g-*.npy"))
    OnDiskKNN(folder / "index", effort=5)(queries, 5, Gallery(folder / "g-*.npy"))
    with pytest.raises(
        ValueError, match=r"index holds results of code_size 3, .* are of code_size 6; give the same again"
    ):
        OnDiskKNN(folder / "index", code_size=6)(queries, 5, Gallery(folder / "g-*.npy"))
    time.sleep(0.01)
    np.save(folder / "g-1.npy", x[:1])
    with pytest.raises(
        ValueError, match=r"kept holds results of gallery of 4 files, 2,001 rows.*the latest g-1.npy at"
    ):
        GalleryKNN(folder / "kept")(queries, 5, Gallery(folder / "g-*.npy"))
    with pytest.raises(ValueError, match=r"g-1.npy is a file; give a folder"):
        GalleryKNN(folder / "g-1.npy")(queries, 5, Gallery(folder / "g-*.npy"))
    with pytest.raises(ValueError, match="holds other files; give an empty folder"):
        OnDiskKNN(folder)(queries, 5, Gallery(folder / "g-*.npy"))
    (folder / "kept" / "made_of.json").write_text("{")
    with pytest.raises(ValueError, match=r"made_of.json does not say what the folder holds; remove"):
        GalleryKNN(folder / "kept")(queries, 5, Gallery(folder / "g-*.npy"))


def bad_shard(folder, array, **kwargs):
    np.save(folder / "bad.npy", array, **kwargs)
    return [folder / "g-0.npy", folder / "bad.npy"]


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (np.zeros((5, D), dtype=np.int8), TypeError, r"bad.npy must hold float16, float32 or float64, got int8"),
        (
            np.zeros((5, D + 1), np.float32),
            ValueError,
            r"of one width, got .*g-0.npy: 12, .*bad.npy: 13; use one model",
        ),
        (np.zeros(D, np.float32), ValueError, r"bad.npy must hold embeddings of shape \(n, d\), .* got shape \(12,\)"),
        (np.zeros((D, 5), np.float32).T, ValueError, "row by row, got shape .5, 12., by column; save numpy.ascont"),
    ],
)
def test_shards_that_do_not_fit_are_refused(saved, array, error, message):
    with pytest.raises(error, match=message):
        Gallery(bad_shard(saved[0], array))


def test_files_that_are_missing_or_cut_short_are_refused(saved):
    folder = saved[0]
    whole = (folder / "g-3.npy").read_bytes()
    (folder / "g-3.npy").write_bytes(whole[:-5])
    bytes_of = rf"1,300 rows of 12 float16, which makes {len(whole):,} bytes, and it has {len(whole) - 5:,}; copy or"
    with pytest.raises(ValueError, match=rf"g-3.npy is cut short: its header says {bytes_of}"):
        Gallery(folder / "g-*.npy")
    for length in (0, 4, 50):
        (folder / "g-3.npy").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"g-3.npy \({length} bytes\) is no .npy file, or cut short within"):
            Gallery(folder / "g-*.npy")
    with pytest.raises(
        FileNotFoundError, match=r"no file .*h-\*.npy for the gallery; expected a .npy file, or a pattern"
    ):
        Gallery(folder / "h-*.npy")
    with pytest.raises(FileNotFoundError, match=r"no file .*g-9.npy for the gallery"):
        Gallery([folder / "g-0.npy", folder / "g-9.npy"])
    with pytest.raises(ValueError, match="the gallery is of no files"):
        Gallery([])
    with pytest.raises(ValueError, match="the gallery has no rows, in 1 files"):
        Gallery(folder / "g-2.npy")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_refused_by_file_and_number(saved, value):
    folder, queries, _, x, _ = saved
    x = x[701:].astype(np.float16)
    x[[940, 960], 3] = value
    np.save(folder / "g-3.npy", x)
    gallery = Gallery(folder / "g-*.npy")
    message = (
        r"g-3.npy holds rows that are NaN or infinite in float32, 2 of the 110 just read, the first of them row 940"
    )
    for knn in (GalleryKNN(folder / "kept"), OnDiskKNN(folder / "index", "ivf")):
        with pytest.raises(ValueError, match="row 940" if isinstance(knn, OnDiskKNN) else message):
            knn(queries, 5, gallery)


def test_labels_that_do_not_fit_are_refused(saved):
    folder, _, _, _, labels = saved
    gallery = Gallery(folder / "g-*.npy")
    np.save(folder / "all.npy", labels)
    assert torch.equal(gallery.read_labels(folder / "all.npy"), torch.from_numpy(labels))
    np.save(folder / "labels-3.npy", labels[:1299])
    with pytest.raises(ValueError, match=r"labels-3.npy must hold 1,300 labels, one for each row, got shape \(1299,\)"):
        gallery.read_labels(folder / "labels-*.npy")
    with pytest.raises(ValueError, match="4 shards and 2 files of labels; give one a shard, or one for all"):
        gallery.read_labels([folder / "labels-0.npy", folder / "labels-1.npy"])
    np.save(folder / "all.npy", labels.astype(str))
    with pytest.raises(TypeError, match=r"all.npy must be numbers, a label for each embedding"):
        gallery.read_labels(folder / "all.npy")


def test_arguments_that_do_not_fit_are_refused(saved):
    folder, queries, of_queries, x, labels = saved
    gallery = Gallery(folder / "g-*.npy")
    for make, error, message in (
        (lambda: GalleryKNN(processes=0), ValueError, "processes must be at least 1, got 0"),
        (lambda: OnDiskKNN("index", "hnsw"), ValueError, "kind must be one of ivfpq, ivf, got 'hnsw'"),
        (lambda: OnDiskKNN("index", effort=0), ValueError, "effort must be at least 1"),
        (lambda: OnDiskKNN("index", "ivf", code_size=3), ValueError, 'code_size is of kind "ivfpq"'),
        (lambda: OnDiskKNN("index", code_size=5)(queries, 1, gallery), ValueError, "must divide d, which is 12, got 5"),
        (
            lambda: GalleryKNN()(queries[:, :3], 1, gallery),
            ValueError,
            r"query must have shape \(Q, 12\), .* got \(60, 3\)",
        ),
        (lambda: GalleryKNN()(queries, 1, torch.from_numpy(x)), TypeError, "reference must be a Gallery, got Tensor"),
        (
            lambda: OnDiskKNN("index")(queries, 1, Gallery(folder / "g-1.npy")),
            ValueError,
            "codes are trained on 256 rows at least, the gallery has 1; take GalleryKNN",
        ),
        (
            lambda: RetrievalAccuracyCalculator(METRICS, device=CPU).get_accuracy(queries, of_queries, gallery, labels),
            TypeError,
            "reference is a Gallery, which PML's search in memory cannot read; give this calculator knn_func",
        ),
        (
            lambda: RetrievalAccuracyCalculator(
                METRICS, device=CPU, knn_func=GalleryKNN(), label_comparison_fn=lambda a, b: a == b
            ).get_accuracy(queries, of_queries, gallery, labels),
            ValueError,
            "label_comparison_fn, .* need the references in memory",
        ),
    ):
        with pytest.raises(error, match=message):
            make()


def test_the_command(saved, capsys):
    folder, queries, of_queries, x, labels = saved
    arguments = ["--queries", folder / "q.npy", "--query-labels", folder / "ql.npy", "--gallery", folder / "g-*.npy"]
    arguments += ["--gallery-labels", folder / "labels-*.npy"]
    by_pml = AccuracyCalculator(METRICS, device=CPU, k="max_bin_count")
    expected = by_pml.get_accuracy(queries, of_queries, torch.from_numpy(x), torch.from_numpy(labels))
    for index in ("exact", "ivfpq"):
        more = ["--folder", folder / index, "--index", index, "--effort", 44, "--rerank", 500]
        main([str(argument) for argument in (*arguments, *more)])
        results = json.loads((folder / index / "evaluation.json").read_text())
        assert (results["queries"], results["references"], results["shards"]) == (60, 2001, 4)
        assert results["index"]["kind"] == index
        recalls = [f"recall_at_{at}" for at in (1, 2, 4, 8)]
        assert results["metrics"].keys() == {"r_precision", "mean_average_precision_at_r", *recalls}
        assert results["metrics"]["recall_at_1"] == pytest.approx(expected["precision_at_1"])
        name = "mean_average_precision_at_r"
        assert results["metrics"][name] == pytest.approx(expected[name])
        printed = capsys.readouterr().out
        assert "60 queries in 2,001 of 4 files" in printed
        assert f"{name:32} {expected[name]:.4f}" in printed
    assert results["index"]["recall"] == 1.0
    arguments[5] = folder / "none-*.npy"
    with pytest.raises(SystemExit, match=r"evaluation.gallery: no file .*none-\*.npy for the gallery"):
        main([str(argument) for argument in (*arguments, "--folder", folder / "exact")])
