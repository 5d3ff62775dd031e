"""python -m pml_s2sd.compress: the map in every format, what is printed, and what is refused in one line."""

import subprocess
import sys

import faiss
import numpy as np
import pytest
import torch

from pml_s2sd import compress
from pml_s2sd.compress import compressed_index, linear_transform, save_map
from pml_s2sd.compress.__main__ import main
from pml_s2sd.compress._measure import agreement, held_out, measure, retrieval

ROWS, COLUMNS, CLASSES = 300, 12, 30


def made(seed=0):
    draw = np.random.default_rng(seed)
    labels = np.arange(ROWS) % CLASSES
    scale = np.arange(1, COLUMNS + 1) ** -0.7
    rows = draw.normal(size=(CLASSES, COLUMNS))[labels] + 0.5 * draw.normal(size=(ROWS, COLUMNS))
    return (rows * scale).astype(np.float32), labels


@pytest.fixture
def folder(tmp_path):
    x, labels = made()
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "labels.npy", labels)
    return tmp_path


def run(folder, *options, output="map.npz", size=4, x="x.npy"):
    main([str(folder / x), "--size", str(size), "--output", str(folder / output), *map(str, options)])


def printed(capsys):
    """The table: each space's figures by the names of the header."""
    lines = capsys.readouterr().out.splitlines()
    header, *rows = (line.split("  ") for line in lines[-4:])
    header = [cell.strip() for cell in header if cell.strip()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    return {name: dict(zip(header, values, strict=True)) for name, *values in cells}, "\n".join(lines)


def test_the_map_is_that_of_all_rows(folder):
    run(folder, "--seed", 3)
    assert list(np.load(folder / "map.npz")) == ["weight"]
    wanted = compress(folder / "x.npy", 4, seed=3).weight.detach().numpy()
    assert np.array_equal(np.load(folder / "map.npz")["weight"], wanted)
    run(folder, "--labels", folder / "labels.npy")
    wanted = compress(folder / "x.npy", 4, labels=made()[1]).weight.detach().numpy()
    assert np.array_equal(np.load(folder / "map.npz")["weight"], wanted)
    assert sorted(path.name for path in folder.iterdir()) == ["labels.npy", "map.npz", "x.npy"]


def test_with_labels_classes_held_out_are_retrieved(folder, capsys):
    run(folder, "--labels", folder / "labels.npy")
    table, text = printed(capsys)
    assert "measured on 60 rows of 6 classes" in text
    x, labels = made()
    parts = held_out(ROWS, labels, 0)
    of_original = retrieval(x[parts.measured], labels[parts.measured])
    assert list(table) == ["original", "PCA", "map"]
    assert table["original"] == {
        "dimensions": "12",
        "bytes a row": "48",
        "index of 300 rows": "0.0 MB",
        "Recall@1": f"{of_original['Recall@1']:.4f}",
        "MAP@R": f"{of_original['MAP@R']:.4f}",
    }
    assert table["map"]["bytes a row"] == table["PCA"]["bytes a row"] == "16"
    layer = compress(x, 4, labels=labels, rows=parts.trained)
    z = layer(torch.from_numpy(x[parts.measured])).detach().numpy()
    assert table["map"]["MAP@R"] == f"{retrieval(z, labels[parts.measured])['MAP@R']:.4f}"


def test_without_labels_neighbour_lists_are_compared(folder, capsys):
    run(folder)
    table, text = printed(capsys)
    assert "measured on 60 rows, held out" in text
    kept = {name: float(of["neighbours kept, of 10"]) for name, of in table.items()}
    assert kept["original"] == 1
    assert 0.3 < kept["PCA"] < 1
    assert 0.3 < kept["map"] < 1


@pytest.mark.parametrize("labels", [np.zeros(ROWS, int), np.arange(ROWS), np.full(ROWS, -1), np.arange(ROWS) // 150])
def test_where_no_class_can_be_held_out_it_says_so(folder, capsys, labels):
    np.save(folder / "labels.npy", labels)
    run(folder, "--labels", folder / "labels.npy")
    table, text = printed(capsys)
    assert "fewer than three classes have two rows" in text
    assert "neighbours kept, of 10" in table["map"]


def test_fewer_rows_than_dimensions_are_measured_too(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(8, 20)).astype(np.float16))
    run(tmp_path, size=10)
    table, _ = printed(capsys)
    assert table["original"]["neighbours kept, of 10"] == "1.0000"


def test_what_is_held_out_shares_no_class_with_what_is_trained_on():
    labels = np.random.default_rng(0).integers(-1, 40, 2000)
    labels[:300] = 77  # a large class
    parts = held_out(2000, labels, 5)
    measured, counts = np.unique(labels[parts.measured], return_counts=True)
    assert len(measured) == 8  # a fifth of 41
    assert not set(measured) & {-1, *labels[parts.trained]}
    assert all(count == min(50, np.sum(labels == name)) for name, count in zip(measured, counts, strict=True))
    assert set(labels[parts.trained]) == set(labels) - set(measured)
    assert len(parts.trained) == sum(~np.isin(labels, measured))
    again, other = held_out(2000, labels, 5), held_out(2000, labels, 6)
    assert np.array_equal(parts.measured, again.measured)
    assert not np.array_equal(parts.measured, other.measured)


def test_rows_held_out_are_apart_and_bounded():
    parts = held_out(60_000, None, 0)
    assert len(parts.measured) == 10_000
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(60_000))
    assert len(held_out(100, None, 0).measured) == 20


def test_agreement_is_the_share_of_neighbours_in_common():
    draw = np.random.default_rng(0)
    x, z = draw.normal(size=(50, 6)), draw.normal(size=(50, 3))
    lists = []
    for space in (x, z):
        unit = space / np.linalg.norm(space, axis=1, keepdims=True)
        similarities = unit @ unit.T - 9 * np.eye(50)
        lists.append([set(row[:5]) for row in np.argsort(-similarities, axis=1)])
    wanted = np.mean([len(a & b) / 5 for a, b in zip(*lists, strict=True)])
    assert agreement(z, x, k=5) == pytest.approx(wanted)
    assert agreement(x, 7 * x) == 1


def test_files_are_read_by_rows_not_whole(folder, monkeypatch):
    read = []
    original = np.memmap.__getitem__

    def counted(self, key):
        found = original(self, key)
        if isinstance(found, np.ndarray) and found.ndim == 2:
            read.append(len(found))
        return found

    monkeypatch.setattr(np.memmap, "__getitem__", counted)
    np.save(folder / "many.npy", np.tile(made()[0], (20, 1)))
    measure(np.load(folder / "many.npy", mmap_mode="r"), 4, None, seed=0, device="cpu")
    assert read
    assert max(read) < 6000


def of_npz(path, x):
    return x @ np.load(path)["weight"].T


def of_faiss(path, x):
    return faiss.read_VectorTransform(str(path)).apply(x)


def of_onnx(path, x):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["compressed"], {"embeddings": x})[0]


def of_safetensors(path, x):
    state = pytest.importorskip("safetensors.torch").load_file(path)
    layer = torch.nn.Linear(COLUMNS, 4, bias=False)
    layer.load_state_dict(state)
    return layer(torch.from_numpy(x)).detach().numpy()


@pytest.mark.parametrize(
    ("suffix", "package", "apply"),
    [
        (".npz", "numpy", of_npz),
        (".faiss", "faiss", of_faiss),
        (".onnx", "onnx", of_onnx),
        (".safetensors", "safetensors", of_safetensors),
    ],
)
def test_every_format_is_the_same_map(folder, suffix, package, apply):
    pytest.importorskip(package)
    run(folder, output=f"map{suffix}")
    x = made(seed=1)[0]
    wanted = compress(folder / "x.npy", 4)(torch.from_numpy(x)).detach().numpy()
    assert apply(folder / f"map{suffix}", x) == pytest.approx(wanted, abs=1e-5)


def test_an_index_of_the_map_is_served_with_the_original_embeddings():
    x = made()[0]
    layer = compress(x, 4).double()
    for metric in (faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2):
        index = compressed_index(layer, faiss.index_factory(4, "Flat", metric))
        assert (index.d, index.index.d) == (12, 4)
        index.add(x)
        z = torch.nn.functional.normalize(layer(torch.from_numpy(x).double()))
        wanted = (z[:20] @ z.T).topk(3).indices
        assert np.array_equal(index.search(x[:20] * 3, 3)[1], wanted)
    ivf = compressed_index(layer, faiss.index_factory(4, "IVF4,SQ8"))
    ivf.train(x)
    ivf.add(x)
    assert ivf.search(x[:5], 1)[1].ravel().tolist() == [0, 1, 2, 3, 4]


def test_an_index_of_another_size_or_with_rows_is_refused():
    layer = torch.nn.Linear(12, 4, bias=False)
    full = faiss.IndexFlatIP(4)
    full.add(np.eye(4, dtype=np.float32))
    for index, says in ((faiss.IndexFlatIP(12), "got 12 dimensions"), (full, "and 4 rows")):
        with pytest.raises(ValueError, match=says):
            compressed_index(layer, index)


def test_a_layer_with_a_bias_is_the_same_transform():
    layer = torch.nn.Linear(5, 3)
    x = torch.randn(7, 5)
    assert linear_transform(layer).apply(x.numpy()) == pytest.approx(layer(x).detach().numpy(), abs=1e-6)


def test_a_map_that_cannot_be_written_leaves_what_was_there(folder, monkeypatch):
    (folder / "map.npz").write_bytes(b"before")

    def fails(file, **arrays):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", fails)
    with pytest.raises(OSError, match="no space left"):
        save_map(torch.nn.Linear(3, 2), folder / "map.npz")
    assert (folder / "map.npz").read_bytes() == b"before"
    assert not (folder / "map.npz.tmp").exists()


def with_nan(x):
    x[7, 2] = np.nan
    return x


@pytest.mark.parametrize(
    ("spoil", "options", "says"),
    [
        (None, {"size": 13}, "size must be at most 12"),
        (None, {"size": 0}, "size must be at least 1"),
        (None, {"x": "none.npy"}, "no file"),
        (None, {"output": "map.txt"}, "none of the suffixes"),
        (None, {"output": "no/map.npz"}, "no folder"),
        (None, {"device": "nowhere"}, "cannot use the device"),
        (None, {"labels": "x.npy"}, "labels must be integers, got float32"),
        (None, {"labels": "few.npy"}, r"labels must have shape (300,), one for each row, got (7,)"),
        (None, {"labels": "none.npy"}, "no file"),
        (with_nan, {}, "row 7 among them"),
        (lambda x: x.astype(int), {}, "floating-point dtype, got int64"),
        (lambda x: x.astype(object), {}, "cannot read embeddings"),
        (lambda x: x[0], {}, "must have shape (N, k)"),
        (lambda x: x[:1], {}, "give at least 4"),
        (lambda x: x[:0], {}, "got (0, 12)"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(folder, spoil, options, says):
    if spoil is not None:
        np.save(folder / "x.npy", spoil(made()[0]), allow_pickle=True)
    np.save(folder / "few.npy", np.arange(7))
    arguments = {"x": "x.npy", "size": 4, "output": "map.npz", **options}
    command = [str(folder / arguments.pop("x")), "--size", str(arguments.pop("size"))]
    for name in ("labels", "output"):
        command += [f"--{name}", str(folder / arguments.pop(name))] if name in arguments else []
    command += ["--device", arguments["device"]] if arguments else []
    with pytest.raises(SystemExit) as exit_:
        main(command)
    message = str(exit_.value)
    assert message.startswith("compress: ")
    assert says in message
    assert "\n" not in message
    assert not (folder / "map.npz").exists()


def test_a_file_cut_short_is_refused_in_one_line(folder):
    whole = (folder / "x.npy").read_bytes()
    for kept in (len(whole) - 100, 50, 0):
        (folder / "x.npy").write_bytes(whole[:kept])
        with pytest.raises(SystemExit, match=rf"^compress: cannot read embeddings .*\({kept:,} bytes\).*cut short"):
            run(folder)
    assert not (folder / "map.npz").exists()


def test_a_format_without_its_package_says_what_to_install(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="needs the package safetensors: pip install safetensors"):
        run(folder, output="map.safetensors")


@pytest.mark.slow
def test_the_command_runs_without_a_warning(folder):
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "pml_s2sd.compress", str(folder / "x.npy")]
    done = subprocess.run(
        [*command, "--size", "4", "--output", str(folder / "map.npz")], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert "a map from 12 to 4 dimensions" in done.stdout
