"""Several real processes: gradients and terms equal those of one process on the whole batch."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from distributed_worker import CASES

WORKER = Path(__file__).parent / "distributed_worker.py"
LAUNCHES = [("ddp", 2), ("ddp", 3), ("ddp_find_unused", 2), ("ddp_static_graph", 2), ("fsdp2", 2)]


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """(mode, number of processes) -> for every case, the largest differences; launched once, no warning allowed."""

    @functools.cache
    def differences(mode, world_size):
        folder = tmp_path_factory.mktemp("distributed")
        # torch.compile's own look at .grad warns
        allowed = ["-W", "error::UserWarning", "-W", "ignore:The .grad attribute of a Tensor:UserWarning"]
        arguments = [sys.executable, *allowed, str(WORKER), mode]
        processes = [
            subprocess.Popen(
                [*arguments, str(rank), str(world_size), str(folder / "store"), str(folder / "differences.json")],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(world_size)
        ]
        try:
            outputs = [process.communicate(timeout=300)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert [process.returncode for process in processes] == [0] * world_size, "\n".join(outputs)
        return json.loads((folder / "differences.json").read_text())

    return differences


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("mode", "world_size"), LAUNCHES, ids=[f"{mode}-{n}" for mode, n in LAUNCHES])
def test_processes_together_compute_what_one_does(launch, mode, world_size, case):
    differences = launch(mode, world_size)[case]
    assert differences.pop("largest gradient") > 1e-3
    assert {name: value for name, value in differences.items() if not value < 1e-6} == {}
    assert sum(name.startswith("embedder.") for name in differences) >= 6
