"""A map made for one-bit codes, on training classes held out: is it worth more than a product quantiser's code?

    PYTHONPATH=examples python -m study.compress_bits --bytes 16 32 --seeds 100 101     # minutes a seed; prints a table

The student's similarities are those of what is stored, D = cos(x_i W, sign(x_j W)), or of both sides' signs, and the
gradient passes the rounding straight through; all else is as in `compress` with labels. A random rotation of the
ordinary map changes no cosine, but what its signs hold.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import torch
from codes import A_BYTE, Space, by_faiss, retrieval, unit
from results import markdown_table
from sklearn.decomposition import PCA
from torch.nn.functional import normalize
from tqdm import tqdm

from pml_s2sd import compress
from pml_s2sd._similarity_map import START_ROWS, Objective, Rows, blocks_of, chosen, principal_axes, subsets
from study.cuts import Trained
from study.pretrained import VIEWS
from study.questions import COMPARED, LARGE, TRAININGS
from study.study import setting_of
from study.training import train

LABEL_WEIGHT, TEMPERATURE, SUBSET_ROWS, STEPS, RATE = 0.3, 0.05, 512, 300, 3e-3
"""Those of `compress`."""


def map_for_signs(e: torch.Tensor, labels: torch.Tensor, bits: int, seed: int, both: bool) -> torch.Tensor:
    """W, (bits, k), trained as `compress` does, but for the rounding; `both`: the query is rounded in training too."""
    rows, draw = Rows("embeddings", e, e.device, e.dtype), np.random.default_rng(seed)
    objective = Objective(TEMPERATURE, LABEL_WEIGHT)
    axes = principal_axes(blocks_of(rows, np.sort(chosen(None, len(e), START_ROWS, draw))))
    scale = axes.pace().sqrt()
    B = (axes.directions * scale).to(e)
    along = normalize(e) @ B
    M = torch.diag(1 / scale)[:bits].to(e).requires_grad_()
    optimizer = torch.optim.Adam([M], RATE)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for S in tqdm(torch.from_numpy(subsets(None, len(e), SUBSET_ROWS, STEPS, draw)), desc=f"{bits} bits", leave=False):
        q = objective.teacher_probs([rows.take(S)], labels[S])
        z = normalize(along[S] @ M.T)
        stored = z + (z.sign() / bits**0.5 - z).detach()
        D = (stored if both else z) @ stored.T / TEMPERATURE
        itself = torch.eye(len(S), dtype=torch.bool)
        log_p = D.masked_fill(itself, -1e9).log_softmax(dim=1).masked_fill(itself, 0)
        optimizer.zero_grad()
        (-(TEMPERATURE**2) / len(S) * (q * log_p).sum()).backward()
        optimizer.step()
        decay.step()
    return (M @ B.T).detach()


def codes_of(size: int, train_rows: torch.Tensor, labels: torch.Tensor, test: np.ndarray, seed: int) -> Iterator:
    """(title, queries, what is stored, metric) of every code of so many bytes."""
    bits, parts = 8 * size, A_BYTE * size
    known = unit(train_rows.numpy())
    pca = PCA(bits, svd_solver="covariance_eigh").fit(known)
    maps = compress(train_rows, [parts, bits], labels=labels, seed=seed)
    W = {d: layer.weight.detach().numpy() for d, layer in maps.items()}
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(bits, bits)))[0].astype(np.float32)
    signed = {
        "PCA, signs": pca.transform(test),
        "map, signs": test @ W[bits].T,
        "map rotated, signs": test @ W[bits].T @ turn,
        "map for signs stored": test @ map_for_signs(train_rows, labels, bits, seed, both=False).numpy().T,
        "map for signs of both": test @ map_for_signs(train_rows, labels, bits, seed, both=True).numpy().T,
    }
    for title, z in signed.items():
        yield title, unit(z), np.sign(z), faiss.METRIC_INNER_PRODUCT
    for title, projected in (
        ("PCA, PQ", [pca.transform(rows)[:, :parts] for rows in (known, test)]),
        ("map, PQ", [rows @ W[parts].T for rows in (known, test)]),
    ):
        space = Space(*map(unit, projected))
        yield title, space.test, by_faiss(f"PQ{size}x8np")(space), faiss.METRIC_L2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, nargs="+", default=(16, 32))
    parser.add_argument("--training", choices=TRAININGS, default="tuned 5")
    parser.add_argument("--objective", choices=COMPARED, default=COMPARED[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=(100, 101))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    setting = setting_of(asked.training, asked.runs, choosing=True)
    labels, lines = setting.test_labels.numpy(), []
    for seed in asked.seeds:
        model, _ = train(setting, asked.objective, LARGE, seed)
        trained = Trained(model, setting, seed)
        e, test = trained.rows.embeddings, unit(trained.test.embeddings.numpy())
        for size in asked.bytes:
            for title, queries, stored, metric in codes_of(size, e, setting.train_labels.repeat(VIEWS), test, seed):
                found = retrieval(queries, stored, labels, metric)
                lines.append([str(size), str(seed), title, " / ".join(f"{100 * value:.1f}" for value in found)])
    print(markdown_table(["bytes", "seed", "code", "Recall@1 / MAP@R"], lines))


if __name__ == "__main__":
    main()
