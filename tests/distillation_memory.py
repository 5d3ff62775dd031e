"""Peak memory that distillation from four teachers adds at a batch of ROWS, in MiB: distillation_memory.py ROWS.

Linux: read from the process's own high-water mark, which, unlike getrusage's, is not inherited from the parent.
"""

import re
import sys
from pathlib import Path

import torch
from pytorch_metric_learning.distances import CosineSimilarity

from pml_s2sd._similarity import Similarity
from pml_s2sd.distillation import Comparison, mean_divergences

D = Similarity(CosineSimilarity())


def distil(rows: int) -> None:
    z = torch.randn(rows, 32, requires_grad=True)
    prepared = [D.prepare(x) for x in (z, *(torch.randn(rows, d) for d in (64, 96, 128, 160)))]
    student, *teachers = [Comparison(x, x) for x in prepared]
    sum(mean_divergences(D, student, [teachers], temperature=0.1)).backward()


def peak_mebibytes() -> float:
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    distil(64)  # what is loaded at first use
    before = peak_mebibytes()
    distil(int(sys.argv[1]))
    print(peak_mebibytes() - before)
