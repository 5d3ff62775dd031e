"""process_group: a model on some of the processes, or beside tensor parallelism, against one process on all samples."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pytorch_metric_learning import losses

from pml_s2sd import s2sd

WORKER = Path(__file__).parent / "group_worker.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("group")
    command = [sys.executable, str(WORKER)]
    started = [
        subprocess.Popen([*command, str(rank), str(folder / "store"), str(folder / "found")]) for rank in range(4)
    ]
    assert [process.wait(timeout=300) for process in started] == [0] * 4
    return [json.loads((folder / f"found{rank}").read_text()) for rank in range(4)]


@pytest.mark.slow
def test_the_groups_average_is_one_process(found):
    compared = {
        (rank, case): d for rank, of_rank in enumerate(found) for case, d in of_rank.items() if isinstance(d, dict)
    }
    assert len(compared) == 2 * 9 + 4 * 9
    too_far = {case: d for case, d in compared.items() if max(d.values()) > 1e-10}
    assert not too_far


@pytest.mark.slow
def test_a_group_that_says_too_little_is_refused(found):
    assert all("the one over which batches differ" in of_rank["the whole mesh"] for of_rank in found)
    assert "this process is not in" in found[3]["another's group"]


def test_something_else_is_refused():
    for wrong in (0, "dp", torch.nn.Linear(2, 2)):
        with pytest.raises(TypeError, match="process_group must be a ProcessGroup, a DeviceMesh or None"):
            s2sd(losses.ContrastiveLoss(), 7, 4, process_group=wrong)
