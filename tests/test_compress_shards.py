"""Embeddings in several files: trained on and mapped as if they lay in one, a block at a time, and gone on with."""

import functools
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measure import peak_mebibytes, reset_peak
from test_compress_command import of_faiss, of_npz, of_onnx, of_safetensors

from pml_s2sd import compress, consolidate
from pml_s2sd._shards import Shards
from pml_s2sd._similarity_map import Rows
from pml_s2sd.compress import __main__ as command
from pml_s2sd.compress import _map_files as module
from pml_s2sd.compress import _measure, load_map, map_files, save_map
from pml_s2sd.compress.__main__ import main
from pml_s2sd.embedder import Embedder

ROWS, COLUMNS, SIZE = 1000, 24, 4
CUTS = (301, 308)
FEW = {"steps": 3, "subset_rows": 64}


def made(seed=0):
    draw = np.random.default_rng(seed)
    return (draw.normal(size=(ROWS, COLUMNS)) * np.arange(1, COLUMNS + 1) ** -0.7).astype(np.float32)


LABELS = np.arange(ROWS) % 40


@pytest.fixture
def files(tmp_path):
    """Three of 301, 7 and 692 rows."""
    paths = [tmp_path / "shards" / f"{name}.npy" for name in "abc"]
    paths[0].parent.mkdir()
    for path, part in zip(paths, np.split(made(), CUTS), strict=True):
        np.save(path, part)
    return paths


def a_map(seed=1):
    torch.manual_seed(seed)
    return torch.nn.Linear(COLUMNS, SIZE, bias=False)


def mapped_in_memory(layer, x):
    """W e / ‖W e‖ in float64."""
    z = x.astype(np.float64) @ layer.weight.detach().numpy().astype(np.float64).T
    return z / np.sqrt((z * z).sum(axis=1, keepdims=True))


def of_files(paths):
    return np.concatenate([np.load(path) for path in paths])


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_rows_are_those_of_all_arrays_joined(data):
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    whole = np.arange(sum(lengths) * 6).reshape(-1, 3, 2).astype(np.float16)
    shards = Shards(np.split(whole, np.cumsum(lengths)[:-1]))
    assert (shards.shape, len(shards), shards.ndim, shards.dtype) == (whole.shape, len(whole), 3, whole.dtype)
    numbers = np.array(data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=9)), dtype=np.int64)
    assert np.array_equal(shards[numbers], whole[numbers])
    assert np.array_equal(shards[torch.from_numpy(numbers)], whole[numbers])
    part = slice(data.draw(st.integers(0, len(whole))), data.draw(st.integers(0, len(whole) + 5)))
    assert np.array_equal(shards[part], whole[part])


def test_a_map_of_shards_is_that_of_all_rows(files):
    x = made()
    wanted = compress(x, SIZE, labels=LABELS, **FEW).weight
    arrays = [np.load(path, mmap_mode="r") for path in files]
    for shards in (files, [str(path) for path in files], tuple(arrays), np.split(x, CUTS)):
        assert torch.equal(compress(shards, SIZE, labels=LABELS, **FEW).weight, wanted)
    some = np.arange(200, 700)
    of_features = compress(x[:, :8], SIZE, features=files, rows=some, **FEW).weight
    assert torch.equal(of_features, compress(x[:, :8], SIZE, features=x, rows=some, **FEW).weight)


def test_features_of_consolidate_may_be_shards_too(files):
    embedder = Embedder(COLUMNS, 6)
    found, wanted = (consolidate(embedder, x, LABELS, size=SIZE, **FEW).head.weight for x in (files, made()))
    assert torch.equal(found, wanted)


def test_files_are_mapped_as_in_memory(files, tmp_path):
    layer, x = a_map(), made()
    wanted = mapped_in_memory(layer, x)
    found = map_files(layer, files, tmp_path / "small")
    assert found == [tmp_path / "small" / path.name for path in files]
    assert [np.load(path, mmap_mode="r").shape for path in found] == [(301, SIZE), (7, SIZE), (692, SIZE)]
    assert of_files(found).dtype == np.float32
    assert of_files(found) == pytest.approx(wanted, abs=1e-6)
    half = map_files(layer, [str(path) for path in files], tmp_path / "half", dtype="float16")
    assert of_files(half).dtype == np.float16
    assert np.array_equal(of_files(half), of_files(found).astype(np.float16))
    assert torch.equal(load_map(tmp_path / "half" / "map.npz").weight, layer.weight)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4"])
def test_files_of_every_dtype_are_mapped(tmp_path, dtype):
    x = made().astype(dtype)
    np.save(tmp_path / "x.npy", x)
    for layer in (a_map(), a_map().double()):
        found = map_files(layer, [tmp_path / "x.npy"], tmp_path / str(layer.weight.dtype))
        assert of_files(found) == pytest.approx(mapped_in_memory(layer, x), abs=1e-6)


def test_a_row_of_zeros_stays_one(tmp_path):
    x = made()
    x[5] = 0
    np.save(tmp_path / "x.npy", x)
    found = of_files(map_files(a_map(), [tmp_path / "x.npy"], tmp_path / "small"))
    assert found[5].tolist() == [0] * SIZE
    assert np.linalg.norm(np.delete(found, 5, 0), axis=1) == pytest.approx(1)


def test_files_are_read_a_block_at_a_time(files, tmp_path, monkeypatch):
    read = []
    original = np.memmap.__getitem__

    def counted(self, key):
        found = original(self, key)
        read.append(len(found))
        return found

    monkeypatch.setattr(module, "BLOCK_ROWS", 100)
    monkeypatch.setattr(np.memmap, "__getitem__", counted)
    found = map_files(a_map(), files, tmp_path / "small")
    assert read == [100, 100, 100, 1, 7, *[100] * 6, 92]
    read.clear()
    compress(files, SIZE, **FEW)
    assert 0 < max(read) < ROWS
    monkeypatch.undo()
    assert of_files(found) == pytest.approx(mapped_in_memory(a_map(), made()), abs=1e-6)


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peak memory is read from Linux's /proc")
def test_mapping_holds_a_block_in_memory_not_a_file(tmp_path):
    """Pages of the file count."""
    rows = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=(2**18, 64))
    rows[:] = 1
    del rows
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, SIZE, bias=False)
    map_files(layer, [tmp_path / "x.npy"], tmp_path / "first")
    reset_peak()
    before = peak_mebibytes()
    map_files(layer, [tmp_path / "x.npy"], tmp_path / "small")
    assert peak_mebibytes() - before < 16  # of a file of 64


def written(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_run_that_was_stopped_goes_on_with_what_is_missing(files, tmp_path, monkeypatch):
    original = Rows.as_they_are

    def stopped(self, rows):
        if self.name.endswith("c.npy") and rows.start > 0:
            raise KeyboardInterrupt
        return original(self, rows)

    monkeypatch.setattr(module, "BLOCK_ROWS", 100)
    monkeypatch.setattr(Rows, "as_they_are", stopped)
    with pytest.raises(KeyboardInterrupt):
        map_files(a_map(), files, tmp_path / "small")
    before = written(tmp_path / "small")
    assert sorted(before) == ["a.npy", "b.npy", "map.npz"]
    monkeypatch.undo()
    found = map_files(a_map(), files, tmp_path / "small")
    assert {name: time for name, time in written(tmp_path / "small").items() if name != "c.npy"} == before
    assert of_files(found) == pytest.approx(mapped_in_memory(a_map(), made()), abs=1e-6)


@pytest.mark.slow
def test_a_run_that_was_killed_leaves_whole_files_and_goes_on(files, tmp_path):
    save_map(a_map(), tmp_path / "map.npz")
    killed = """
import os, signal, sys
from pml_s2sd._similarity_map import Rows
from pml_s2sd.compress import __main__ as command
from pml_s2sd.compress import _map_files as module
from pml_s2sd.compress import _measure
from pml_s2sd.compress.__main__ import main
original, module.BLOCK_ROWS = Rows.as_they_are, 100
def as_they_are(self, rows):
    if self.name.endswith("c.npy") and rows.start == 300:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, rows)
Rows.as_they_are = as_they_are
main(sys.argv[1:])
"""
    arguments = [*map(str, files), "--map", str(tmp_path / "map.npz"), "--output", str(tmp_path / "small")]
    done = subprocess.run([sys.executable, "-c", killed, *arguments])
    assert done.returncode == -signal.SIGKILL
    assert sorted(written(tmp_path / "small")) == ["a.npy", "b.npy", "c.npy.tmp", "map.npz"]
    main(arguments)
    assert sorted(written(tmp_path / "small")) == ["a.npy", "b.npy", "c.npy", "map.npz"]
    found = of_files([tmp_path / "small" / path.name for path in files])
    assert found == pytest.approx(mapped_in_memory(a_map(), made()), abs=1e-6)


def test_a_file_that_was_written_again_is_mapped_again(files, tmp_path):
    found = map_files(a_map(), files, tmp_path / "small")
    other = made(seed=3)[:50]
    np.save(files[1], other)
    later = found[1].stat().st_mtime_ns + 10**9
    os.utime(files[1], ns=(later, later))
    before = written(tmp_path / "small")
    map_files(a_map(), files, tmp_path / "small")
    assert np.load(found[1]) == pytest.approx(mapped_in_memory(a_map(), other), abs=1e-6)
    after = written(tmp_path / "small")
    assert [name for name in before if before[name] != after[name]] == ["b.npy"]


def test_a_folder_never_takes_rows_of_another_map(files, tmp_path):
    found = map_files(a_map(), files[:1], tmp_path / "small")
    before = written(tmp_path / "small")
    with pytest.raises(ValueError, match=r"small holds rows of another map, .*small/map\.npz.*load_map\("):
        map_files(a_map(seed=2), files, tmp_path / "small")
    with pytest.raises(ValueError, match=r"a\.npy holds float32 of shape \(301, 4\), expected float16 of shape"):
        map_files(a_map(), files, tmp_path / "small", dtype="float16")
    assert written(tmp_path / "small") == before
    whole = found[0].read_bytes()
    found[0].write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=rf"a\.npy is in the way, remove it: .*{len(whole):,} bytes expected"):
        map_files(a_map(), files, tmp_path / "small")


def cut_short(files):
    files[2].write_bytes(files[2].read_bytes()[:5000])


def narrower(files):
    np.save(files[1], made()[:7, :9])


def of_integers(files):
    np.save(files[1], made()[:7].astype(np.int64))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (cut_short, r"c\.npy \(5,000 bytes\): it is cut short, 66,560 bytes expected for float32 of shape \(692, 24\)"),
        (narrower, r"b\.npy has rows of 9 numbers, and the map takes 24"),
        (of_integers, r"b\.npy must be of a floating-point dtype, got int64"),
        (lambda files: files[1].unlink(), r"no file .*b\.npy"),
        (lambda files: files.clear(), "files is empty"),
        (lambda files: files.append(files[0].parent.parent / "a.npy"), "shards/a.npy and .*a.npy have the same name"),
    ],
)
def test_files_that_do_not_fit_are_refused_before_anything_is_written(files, tmp_path, spoil, says):
    spoil(files)
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=says):
        map_files(a_map(), files, tmp_path / "small")
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("layer", "folder", "dtype", "says"),
    [
        (a_map(), "shards", "float32", "is the folder of .*a.npy"),
        (a_map(), "small", "int8", "dtype must be one of float32, float16, got 'int8'"),
        (a_map(), "shards/a.npy", "float32", "a.npy, a file; give a folder"),
        (torch.nn.Linear(COLUMNS, SIZE), "small", "float32", "layer has a bias"),
    ],
)
def test_what_cannot_be_written_is_refused(files, tmp_path, layer, folder, dtype, says):
    with pytest.raises(ValueError, match=says):
        map_files(layer, files, tmp_path / folder, dtype=dtype)
    assert of_files(files).shape == (ROWS, COLUMNS)


def test_a_head_of_consolidate_is_a_map_too(files, tmp_path):
    head = consolidate(Embedder(COLUMNS, 6), made(), size=SIZE, steps=0).head
    assert of_files(map_files(head, files, tmp_path / "small")) == pytest.approx(
        mapped_in_memory(head, made()), abs=1e-6
    )


def test_a_row_that_is_nan_is_named_and_its_file_is_not_written(files, tmp_path):
    x = np.load(files[2])
    x[17, 3] = np.nan
    np.save(files[2], x)
    with pytest.raises(ValueError, match=r"c\.npy has rows that are NaN or infinite, row 17 among them"):
        map_files(a_map(), files, tmp_path / "small")
    assert sorted(written(tmp_path / "small")) == ["a.npy", "b.npy", "map.npz"]
    with pytest.raises(ValueError, match="row 325 among them"):
        compress(files, SIZE, **FEW)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (cut_short, r"embeddings from .*c\.npy \(5,000 bytes\): it is cut short, 66,560 bytes expected"),
        (narrower, r"embeddings of .*b\.npy has rows of shape \(9,\), float32, and embeddings of .*a\.npy of \(24,\)"),
        (of_integers, "floating-point dtype, got int64"),
        (lambda files: files.clear(), "embeddings is an empty list"),
        (lambda files: files.append(made()[0]), r"embeddings\[3\] must have shape \(N, k\)"),
        (lambda files: files.append(made().astype(np.float16)), r"embeddings\[3\] has rows of shape \(24,\), float16"),
        (lambda files: files.append(7), "or a list of such files, got list"),
    ],
)
def test_shards_that_do_not_fit_together_are_refused(files, spoil, says):
    spoil(files)
    with pytest.raises((ValueError, TypeError), match=says):
        compress(files, SIZE, **FEW)


def test_the_command_takes_several_files(files, tmp_path, capsys, monkeypatch):
    for user in (command, _measure):
        monkeypatch.setattr(user, "compress", functools.partial(compress, **FEW))
    np.save(tmp_path / "x.npy", made())
    for path, part in zip(files, np.split(LABELS, CUTS), strict=True):
        np.save(tmp_path / f"labels_{path.name}", part)
    np.save(tmp_path / "labels.npy", LABELS)
    labels = [str(tmp_path / f"labels_{path.name}") for path in files]
    printed, maps = [], []
    for x, y in ((map(str, files), labels), ([str(tmp_path / "x.npy")], [str(tmp_path / "labels.npy")])):
        main([*x, "--size", "4", "--output", str(tmp_path / "map.npz"), "--labels", *y])
        printed.append(capsys.readouterr().out)
        maps.append(np.load(tmp_path / "map.npz")["weight"])
    assert np.array_equal(*maps)
    assert printed[0] == printed[1]
    assert "Recall@1" in printed[0]
    main([*map(str, files), "--map", str(tmp_path / "map.npz"), "--output", str(tmp_path / "s"), "--dtype", "float16"])
    assert capsys.readouterr().out == f"1,000 rows of 4 dimensions, float16, in {tmp_path / 's'}: 0.0 MB in 3 files\n"
    found = of_files([tmp_path / "s" / path.name for path in files])
    assert found == pytest.approx(mapped_in_memory(load_map(tmp_path / "map.npz"), made()), abs=1e-3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--map", "none.npz"], "compress: no file none.npz"),
        (["--map", "shards/a.npy"], "compress: shards/a.npy has none of the suffixes"),
        (["--map", "broken.npz"], r"compress: cannot read a map from broken.npz \(.*cut short"),
        (["--map", "flat.npz"], r"compress: flat.npz holds an array of shape \(1,\)"),
        (["--map", "map.npz", "--labels", "labels.npy"], "compress: --labels are for training a map"),
        (["--map", "map.npz", "--device", "nowhere"], "compress: cannot use the device"),
    ],
)
def test_a_map_that_cannot_be_used_is_refused_in_one_line(files, tmp_path, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    save_map(a_map(), "map.npz")
    (tmp_path / "broken.npz").write_bytes((tmp_path / "map.npz").read_bytes()[:100])
    np.savez("flat.npz", weight=1.0)
    with pytest.raises(SystemExit, match=says) as error:
        main(["shards/a.npy", "--output", "small", *options])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(("suffix", "apply"), [
    (".npz", of_npz), (".faiss", of_faiss), (".onnx", of_onnx), (".safetensors", of_safetensors),
])  # fmt: skip
def test_a_map_is_read_from_every_format(tmp_path, suffix, apply):
    if suffix in (".onnx", ".safetensors"):
        pytest.importorskip(suffix[1:])
    layer = torch.nn.Linear(12, SIZE, bias=False)
    save_map(layer, tmp_path / f"map{suffix}")
    found = load_map(tmp_path / f"map{suffix}")
    assert torch.equal(found.weight, layer.weight)
    x = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    assert found(torch.from_numpy(x)).detach().numpy() == pytest.approx(apply(tmp_path / f"map{suffix}", x), abs=1e-6)
