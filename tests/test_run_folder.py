"""A run's folder: what is written is read back, and what cannot be used is refused."""

import json
import os

import numpy as np
import pytest
import torch
from run_folders import write_run

from pml_s2sd.report.run_folder import RunWriter, read_run, read_runs


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_what_is_written_is_read_back(tmp_path):
    run = RunWriter(tmp_path / "runs" / "mine", {"seed": 3, "lr": 0.1, "images": tmp_path}, machine="a machine")
    terms = {"distill": torch.tensor(0.25), "feature": np.float32(0.5), "steps": np.int64(7)}
    run.add_epoch("msdfa", {"loss": 1.5, **terms})
    assert metrics_of(run.folder) == {
        "settings": {"seed": 3, "lr": 0.1, "images": str(tmp_path)},
        "machine": "a machine",
        "models": {"msdfa": {"epochs": [{"epoch": 1, "loss": 1.5, "distill": 0.25, "feature": 0.5, "steps": 7}]}},
    }
    run.add_epoch("msdfa", {"epoch": 5, "loss": 0.5})
    run.finish("msdfa", {"precision_at_1": torch.tensor([0.75]), "singular_values": torch.tensor([2.0, 1.0])})
    read = read_run(run.folder)
    assert read.settings["lr"] == 0.1
    assert read.models["msdfa"] == {
        "epochs": [
            {"epoch": 1, "loss": 1.5, "distill": 0.25, "feature": 0.5, "steps": 7},
            {"epoch": 5, "loss": 0.5},
        ],
        "precision_at_1": 0.75,
        "singular_values": [2.0, 1.0],
    }
    assert not list(tmp_path.rglob("*.tmp"))


def test_without_figures_of_its_own_a_finished_model_has_the_last_epochs_metrics(tmp_path):
    run = RunWriter(tmp_path)
    for epoch in (1, 2):
        run.add_epoch("msd", {"loss": 1 / epoch, "precision_at_1": 0.2 * epoch, "effective_rank": 3.5})
    assert metrics_of(tmp_path)["models"]["msd"].keys() == {"epochs"}
    run.finish("msd")
    record = read_run(tmp_path).models["msd"]
    assert (record["precision_at_1"], record["effective_rank"]) == (0.4, 3.5)
    assert "loss" not in record


def test_a_record_that_a_checkpoint_kept_goes_on(tmp_path):
    first = RunWriter(tmp_path / "first")
    first.add_epoch("msd", {"loss": 2.0})
    second = RunWriter(tmp_path / "second")
    second.restore("msd", json.loads(json.dumps(first.content["models"]["msd"])))
    assert metrics_of(tmp_path / "second") == metrics_of(tmp_path / "first")
    second.add_epoch("msd", {"loss": 1.0})
    assert second.epochs("msd") == [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}]


@pytest.mark.parametrize(
    ("value", "found"),
    [("high", "str"), (None, "NoneType"), (True, "bool"), ([1.0], "list"), (torch.ones(2), "Tensor")],
)
def test_figures_that_are_no_numbers_are_refused_and_nothing_changes(tmp_path, value, found):
    run = RunWriter(tmp_path)
    run.add_epoch("msd", {"loss": 1.0})
    before = metrics_of(tmp_path)
    for call in (run.add_epoch, run.finish):
        with pytest.raises(TypeError, match=f"recall_at_2 must be a number, got {found}"):
            call("msd", {"precision_at_1": 0.5, "recall_at_2": value})
    with pytest.raises(ValueError, match=r'needs "precision_at_1", .* got \[\'r_precision\'\] of \'msd\'; give it'):
        run.finish("msd", {"r_precision": 0.3})
    with pytest.raises(ValueError, match=r"got \[\] of 'other'"):
        run.finish("other")
    assert metrics_of(tmp_path) == before == run.content


def test_runs_of_one_name_are_called_by_their_paths(tmp_path):
    folders = [write_run(tmp_path / place, "demo") for place in ("a", "b")]
    assert [run.name for run in read_runs(folders)] == [str(folder) for folder in folders]


def test_errors_say_what_is_wrong_with_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; expected a run of examples/train.py"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no metrics.json in .*; it is written after the first epoch"):
        read_run(tmp_path)
    folder = write_run(tmp_path, "begun", {"baseline": {"epochs": [{"epoch": 1}, {"epoch": 2}]}})
    with pytest.raises(ValueError, match=r"no finished model in .*\(baseline: 2 epochs\); go on with the run"):
        read_run(folder)
    path = write_run(tmp_path, "cut") / "metrics.json"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cannot read .*metrics.json \(200 bytes\): .*it may be cut short"):
        read_run(path.parent)
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match="cannot read"):
        read_run(path.parent)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "is no metrics.json of a run"),
        ({"models": []}, '"models" is list; expected an object'),
        ({"models": {}, "data": 3}, '"data" is int; expected an object'),
        ({"models": {}}, "no finished model .*none begun"),
        ({"models": {"msd": {}}}, "model 'msd' has no list \"epochs\""),
        ({"models": {"msd": {"epochs": [{"epoch": "1"}]}}}, "model 'msd' has no list \"epochs\""),
        ({"models": {"msd": {"epochs": [], "f1": "high"}}}, "f1 of model 'msd' is 'high'; expected a number"),
        ({"models": {"msd": {"epochs": [], "singular_values": [None]}}}, "singular_values of model 'msd'"),
    ],
)
def test_a_metrics_json_of_another_shape_is_refused(tmp_path, content, message):
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read .* \\(0 bytes\\): "),
        ("\ufeff{}", "cannot read "),
        ("<html>", "cannot read "),
        ('{"models": {"x": {"epochs": []', "cannot read .* it may be cut short"),
        ('{"models":' + "[" * 200_000, "cannot read .*: its values are nested too deeply"),
        ("null", "is no metrics.json of a run"),
        ("3", "is no metrics.json of a run"),
        ('"models"', "is no metrics.json of a run"),
        ("{}", "is no metrics.json of a run"),
        ('{"models": null}', '"models" is NoneType; expected an object'),
        ('{"models": {"x": null}}', "model 'x' has no list"),
        ('{"models": {}, "settings": []}', '"settings" is list; expected an object'),
        ('{"models": {"x": {"epochs": [null]}}}', "model 'x' has no list"),
        ('{"models": {"x": {"epochs": [{"epoch": true}]}}}', "model 'x' has no list"),
        ('{"models": {"x": {"epochs": [], "NMI": null}}}', "NMI of model 'x' is None; expected a number"),
        ('{"models": {"x": {"epochs": [], "train_seconds": "3"}}}', "train_seconds of model 'x' is '3'; expected a"),
        ('{"models": {"x": {"epochs": [{"epoch": 1, "f1": {}}]}}}', "f1 of model 'x' is {}; expected a number"),
        (
            '{"models": {"x": {"epochs": [], "f1": 1%s}}}' % ("0" * 400),
            "f1 of model 'x' is 10+\\.\\.\\.0+; expected a number, of 64",
        ),
        ('{"models": {"x": {"epochs": [], "f1": 1%s}}}' % ("0" * 5000), "cannot read "),
        ('{"models": {"%s": {}}}' % ("x" * 999), "model 'x+\\.\\.\\.x+' has no list"),
        ('{"models": {"x": {"epochs": [], "singular_values": {}}}}', "singular_values of model 'x' is no list"),
    ],
)
def test_whatever_is_in_metrics_json_is_read_or_refused_in_a_sentence(tmp_path, text, message):
    (tmp_path / "metrics.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as refusal:
        read_run(tmp_path)
    assert len(str(refusal.value)) < 600


def test_metrics_json_is_a_regular_file(tmp_path):
    """A pipe is not waited for."""
    os.mkfifo(tmp_path / "metrics.json")
    with pytest.raises(FileNotFoundError, match=r"no metrics\.json in"):
        read_run(tmp_path)
    os.unlink(tmp_path / "metrics.json")
    (tmp_path / "metrics.json").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no metrics\.json in"):
        read_run(tmp_path)


def test_text_that_utf_8_lacks_is_escaped(tmp_path):
    record = '{"epochs": [], "precision_at_1": 0.5}'
    (tmp_path / "metrics.json").write_text(
        rf'{{"models": {{"\ud800": {record}, "\ud83d\ude00": {record}}}, "settings": {{"a": ["\udfff"]}}}}'
    )
    run = read_run(tmp_path)
    assert list(run.models) == [r"\ud800", "😀"]
    assert run.settings == {"a": [r"\udfff"]}
