"""DistributedDataParallel and FSDP2 around the embedder, with real processes."""

import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "distributed_worker.py"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "ddp_find_unused", "ddp_static_graph", "fsdp2"])
def test_gradients_arrive_in_every_head_as_the_mean_over_processes(mode, tmp_path):
    arguments = [sys.executable, "-W", "error::UserWarning", str(WORKER), mode]
    processes = [
        subprocess.Popen(
            [*arguments, str(rank), "2", str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert all(f"rank {rank} of 2: all gradients equal" in output for rank, output in enumerate(outputs))
