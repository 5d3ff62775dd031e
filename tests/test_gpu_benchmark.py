"""`make gpu` without a card: every section's dry run, what it refuses, and what its parts make of what they read.

That a loss step would pass torch's detector of waits, and be captured, is told without a card by the meta device: it
has no values to read, and what is made on the host, to be copied, is seen.
"""

import argparse
import json
import os
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import gpu
import gpu_table
import pytest
import torch
from gpu import SECTIONS, Section, card, in_a_process
from gpu_host import WAIT, counted, detector, kernels, reader, runs_without_waiting
from gpu_programs import Captured
from gpu_scale import made_up, nearest, peak, shared
from gpu_step import MULTI_SIMILARITY, NEEDS_A_CARD, READS_NOTHING, SMALL, LossStep, largest_difference
from gpu_table import WAYS
from gpu_tests import counts, files_with_the_marker
from tables import markdown
from test_synchronisation import HostReads
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
WITH_S2SD = WAYS[1:]


def dry_run(section):
    return SECTIONS[section].measure(CPU, True)


def of_each_way(value):
    return dict.fromkeys(WAYS, value)


def test_waits_and_launches_need_a_card():
    assert dry_run("synchronisation") == {
        name: of_each_way(NEEDS_A_CARD)
        for name in ("waits", "MultiSimilarityLoss: waits", "MultiSimilarityLoss: waits that are not PML's")
    }
    assert dry_run("launches") == {
        name: of_each_way(NEEDS_A_CARD) for name in ("kernels", "MultiSimilarityLoss: kernels")
    }


def test_a_graph_needs_a_card_and_the_eager_step_does_not():
    figures = dry_run("graph")
    assert figures["graph, milliseconds"] == figures["largest difference"] == of_each_way(NEEDS_A_CARD)
    assert all(figures["eager, milliseconds"][way] > 0 for way in WAYS)


@pytest.mark.slow
def test_the_compiled_step_is_the_eager_one():
    figures = dry_run("compile")
    assert all(figures["largest difference"][way] < 1e-5 for way in WAYS)
    assert figures["compiled, milliseconds"].keys() == figures["ratio"].keys() == set(WAYS)


@pytest.mark.slow
def test_the_networks_step():
    figures = dry_run("network")
    assert (figures["batch"], figures["side"]) == (4, 32)
    times = figures["milliseconds"]
    for way in WITH_S2SD:
        assert figures["ratio"][way] == pytest.approx(times[way] / times[WAYS[0]], rel=1e-3)
        assert figures["at most 1.03"][way] is (figures["ratio"][way] <= 1.03)
    assert figures["MiB"] == of_each_way(NEEDS_A_CARD)


def test_the_distillation_in_blocks_is_the_plain_one():
    figures = dry_run("large batch")
    assert figures["largest difference"] < 1e-5
    assert figures["milliseconds"].keys() == figures["MiB"].keys() == {"plain", "blocks"}


def test_maps_of_made_up_rows():
    figures = dry_run("million rows")
    assert figures["rows"] == 2000
    for way in ("compress", "consolidate"):
        assert figures[way]["MiB"] == NEEDS_A_CARD
        assert 0.2 < figures[way]["neighbours kept"] < 1


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A dry run of one section by the command."""
    folder = tmp_path_factory.mktemp("results")
    arguments = ["--device", "cpu", "--small", "--only", "large batch", "--results", str(folder)]
    run = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads((folder / "gpu.json").read_text()), run.stdout


@pytest.mark.slow
def test_what_is_written(written):
    found, printed = written
    assert found["machine"]["gpu"] is None
    assert found["machine"]["torch"].startswith(torch.__version__.split("+")[0])
    assert found["command"].startswith("python benchmarks/gpu.py --device cpu --small")
    ((name, section),) = found["figures"].items()
    assert (name, section["outcome"]) == ("large batch", "done")
    assert section["figures"]["rows"] == 96
    assert "1 of 1: large batch, at most 30 s" in printed


@pytest.mark.slow
def test_without_a_card_it_says_so_before_it_does_anything(tmp_path):
    command = [sys.executable, str(SCRIPT), "--results", str(tmp_path / "results")]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert run.returncode == 1
    assert run.stdout == ""
    assert "this needs a CUDA device" in run.stderr and "nothing was measured" in run.stderr
    assert not (tmp_path / "results").exists()


def test_all_sections_together_take_eight_minutes_at_most():
    assert sum(section.seconds for section in SECTIONS.values()) <= 480


@pytest.mark.slow
def test_a_section_that_fails_or_takes_too_long_is_said(monkeypatch):
    no_card = argparse.Namespace(device="cuda", small=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    failed = in_a_process("launches", no_card)
    assert failed["outcome"] == "failed" and "this needs a CUDA device" in failed["error"]
    monkeypatch.setitem(gpu.SECTIONS, "launches", Section(lambda device, small: {}, seconds=0))
    assert in_a_process("launches", no_card) == {"outcome": "out of time", "seconds": 0}


class MadeOnTheHost(TorchDispatchMode):
    """Records the operations that return a tensor in the host's memory."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        returned = func(*args, **(kwargs or {}))
        if any(isinstance(x, torch.Tensor) and x.device.type == "cpu" for x in tree_leaves(returned)):
            self.seen.append(func.__name__)
        return returned


@pytest.mark.parametrize("way", WAYS)
def test_the_step_reads_no_value_and_makes_nothing_on_the_host(way, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())  # it knows no meta device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *args: False)
    step = LossStep(way, READS_NOTHING, SMALL, "meta")
    with MadeOnTheHost() as made:
        loss = step()
    assert made.seen == []
    assert loss.is_meta
    assert len(step.gradients()) == len(step.leaves)


class Recorded:
    """In place of calls of torch.cuda: what was called, in order."""

    def __init__(self, monkeypatch, **returned):
        self.calls = []
        for name, value in returned.items():
            monkeypatch.setattr(torch.cuda, name, self.call(name, value))

    def call(self, name, value):
        def called(*args, **options):
            self.calls.append((name, *args))
            return value

        return called


@pytest.mark.parametrize("way", WAYS)
def test_what_a_graph_returns_is_the_step_that_was_captured(way, monkeypatch):
    """Without a card the step runs where it would be captured, and a replay does nothing."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    replays = []
    graph = SimpleNamespace(replay=lambda: replays.append(1))
    recorded = Recorded(
        monkeypatch, Stream=stream, current_stream=stream, stream=nullcontext(), CUDAGraph=graph, graph=nullcontext()
    )
    eager, step = (LossStep(way, READS_NOTHING, SMALL, "cpu") for _ in range(2))
    captured = Captured(step)
    assert [name for name, *_ in recorded.calls][-2:] == ["CUDAGraph", "graph"]
    found = captured()
    assert replays == [1]
    assert largest_difference(found, [eager(), *eager.gradients()]) < 1e-6
    assert len(found) == 1 + len(step.leaves)


def test_the_detector_is_set_and_put_back(monkeypatch):
    recorded = Recorded(monkeypatch, set_sync_debug_mode=None)
    with pytest.raises(ValueError), detector("error", CUDA):
        raise ValueError
    assert recorded.calls == [("set_sync_debug_mode", "error"), ("set_sync_debug_mode", "default")]


def test_the_peak_is_above_what_was_held_before(monkeypatch):
    mebibyte = 2**20
    Recorded(
        monkeypatch,
        reset_peak_memory_stats=None,
        memory_allocated=100 * mebibyte,
        max_memory_allocated=350 * mebibyte,
    )
    assert peak(CUDA, lambda: "returned") == ("returned", 250)


def test_a_card_is_told_from_others(monkeypatch):
    properties = SimpleNamespace(name="a card", major=9, minor=0, total_memory=80 * 2**30)
    Recorded(monkeypatch, get_device_properties=properties)
    assert card(CUDA).items() >= {"gpu": "a card", "capability": "9.0", "MiB": 80 * 1024}.items()
    assert card(CPU) == {"gpu": None}


@pytest.mark.parametrize("way", WAYS)
def test_the_step_reads_nothing_that_a_dispatcher_sees(way):
    step = LossStep(way, READS_NOTHING, SMALL, "cpu")
    with HostReads() as reads:
        step()
    assert reads.seen == []


def test_the_other_objective_reads_on_the_host():
    with HostReads() as reads:
        LossStep("recommended", MULTI_SIMILARITY, SMALL, "cpu")()
    assert "nonzero" in reads.seen


def test_a_step_is_the_same_again_and_leaves_no_graph():
    step = LossStep("MSDF", READS_NOTHING, SMALL, "cpu")
    first = [step(), *step.gradients()]
    again = [step(), *step.gradients()]
    assert largest_difference(again, first) == 0
    assert not again[0].requires_grad
    assert all(new.data_ptr() != old.data_ptr() for new, old in zip(again[1:], first[1:], strict=True))


def test_the_largest_difference_is_relative_to_the_tensor():
    found = [torch.tensor([1.0, 2.0]), torch.tensor([100.0, 50.0])]
    expected = [torch.tensor([1.0, 2.0]), torch.tensor([100.0, 55.0])]
    assert largest_difference(found, expected) == pytest.approx(0.05)


def test_waits_are_counted_by_who_reads():
    def step():
        for _ in range(3):
            warnings.warn(WAIT, stacklevel=1)
        warnings.warn("another", stacklevel=1)

    assert counted(step, CPU) == {"neither": 3}
    assert reader(["/a/pml_s2sd/loss.py", "/b/pytorch_metric_learning/losses/x.py", "/c/torch/functional.py"]) == (
        "pytorch_metric_learning"
    )
    assert reader(["/b/pytorch_metric_learning/x.py", "/a/pml_s2sd/loss.py"]) == "pml_s2sd"


def test_the_detectors_error_is_told_from_others():
    def waits():
        raise RuntimeError(WAIT)

    def fails():
        raise RuntimeError("out of memory")

    assert not runs_without_waiting(waits, CPU)
    assert runs_without_waiting(lambda: None, CPU)
    with pytest.raises(RuntimeError, match="out of memory"):
        runs_without_waiting(fails, CPU)


def test_launches_are_told_by_their_names():
    calls = {
        "cudaLaunchKernel": 5,
        "cudaLaunchKernelExC_v11060": 2,
        "cuLaunchKernelEx": 1,
        "cudaLaunchCooperativeKernel": 1,
        "cudaGraphLaunch": 9,
        "cudaMemcpyAsync": 9,
        "aten::mm": 9,
        "void at::native::vectorized_elementwise_kernel": 9,
    }
    assert kernels(calls) == 9


def test_made_up_rows_find_their_class():
    x, labels = made_up(400, 16, torch.float32, CPU)
    assert x.shape == (400, 16) and labels.bincount().tolist() == [10] * 40
    near = nearest(x)
    assert near.sum(dim=1).tolist() == [10] * 400 and not near.diagonal().any()
    of_class = near & (labels[:, None] == labels)
    assert of_class.sum() / near.sum() > 3 * 9 / 399
    assert shared(near, near) == 1.0
    assert shared(near, ~near) == 0.0


def test_the_files_with_tests_that_need_a_device():
    found = {Path(file).name for file in files_with_the_marker()}
    assert found >= {"test_bad_days.py", "test_lifecycle.py", "test_precision.py", "test_distributed_alone.py"}
    assert found >= {"test_accuracy.py", "test_clustering.py"} and "test_variants.py" not in found


def test_a_report_of_pytest(tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.test_a" name="good"/>'
        '<testcase classname="tests.test_a" name="bad"><failure message="no"/></testcase>'
        '<testcase classname="tests.test_b" name="broken"><error message="no"/></testcase>'
        '<testcase classname="tests.test_b" name="left out"><skipped message="needs faiss for GPUs"/></testcase>'
        "</testsuite></testsuites>"
    )
    assert counts(report) == {
        "passed": 1,
        "failed": 2,
        "failures": ["test_a::bad", "test_b::broken"],
        "skipped": {"test_b::left out": "needs faiss for GPUs"},
    }


FIGURES = {
    "tests": {"outcome": "done", "figures": {"passed": 14, "failed": 0}},
    "network": {
        "outcome": "done",
        "figures": {
            "milliseconds": {"without S2SD": 50.0, "recommended": 51.0, "MSDF": 53.0},
            "ratio": {"recommended": 1.02, "MSDF": 1.06},
        },
    },
    "graph": {"outcome": "failed", "error": "…"},
}


def test_the_tables_of_what_was_found(tmp_path):
    machine = {"gpu": "a card", "driver": "1.2", "cuda": "12.6", "torch": "2.13.0"}
    (tmp_path / "gpu.json").write_text(json.dumps({"machine": machine, "command": "make gpu", "figures": FIGURES}))
    lines = markdown("gpu", tmp_path).splitlines()
    assert "| ResNet-50's step, ms | 50.0 | 51.0 | 53.0 |  |" in lines
    assert "| ResNet-50's step, ratio | – | 1.02 | 1.06 | ≤ 1.03: recommended met, MSDF not met |" in lines
    assert "| loss step in a CUDA graph, ms | – | – | – |  |" in lines
    assert lines[-1] == "*`make gpu`, a card, driver 1.2, CUDA 12.6, torch 2.13.0*"
    assert "| tests that need a device, passed | 14 |" in markdown("gpu_else", tmp_path).splitlines()


def test_without_a_file_the_tables_say_so(tmp_path):
    lines = markdown("gpu", tmp_path).splitlines()
    assert lines[-1] == "*No GPU has been at hand yet: `make gpu` has not been run.*"
    assert f"| ResNet-50's step, ratio | – | – | – | ≤ {gpu_table.RATIO_TARGET}: not measured |" in lines
