"""Recall against bytes: codes of the study's embeddings of 1,024 dimensions, compressed, by PCA, and as they are.

    PYTHONPATH=examples python -m study.compress_codes               # one training, minutes; prints the table
    PYTHONPATH=examples python -m study.compress_codes --publish     # and writes it, and the plot, into docs/

On the test classes, which neither the model nor a map nor a code has seen; maps and codes are trained on four views of
each training image, maps with labels (--without-labels: without).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from codes import PASSES, ROTATIONS, plot, rows_of, table
from results import write_text

from study.cuts import Trained
from study.pretrained import VIEWS
from study.questions import COMPARED, LARGE, TRAININGS
from study.settings import PHOTOS
from study.study import COMPRESS_PAGE, DOCS, setting_of, written_between
from study.training import train

BEGIN, END = "<!-- codes, written by compress_codes.py --publish -->", "<!-- end of codes -->"

EXPLAINED = f"""\
What is stored may be coded; what is searched for is not. 1 bit: the sign of each of 8 dimensions a byte. PQ, OPQ:
faiss's product quantisers, with {PASSES} passes of k-means and {ROTATIONS} rotations. Maps are of the embeddings alone.
The plot leaves out what is below two thirds of the original."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", choices=TRAININGS, default="tuned 5")
    parser.add_argument("--objective", choices=COMPARED, default=COMPARED[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-labels", action="store_true")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--photos", type=Path, help=PHOTOS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--publish", action="store_true", help=f"write the codes' table of {COMPRESS_PAGE.name}, and its plot"
    )
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    setting = setting_of(chosen.training, chosen.runs, photos=chosen.photos, device=chosen.device)
    model, _ = train(setting, chosen.objective, LARGE, chosen.seed)
    trained = Trained(model, setting, chosen.seed)
    rows = rows_of(
        trained.rows.embeddings.cpu().numpy(),
        trained.test.embeddings.cpu().numpy(),
        setting.test_labels.numpy(),
        train_labels=None if chosen.without_labels else setting.train_labels.repeat(VIEWS).numpy(),
        seed=chosen.seed,
    )
    labels = "without" if chosen.without_labels else "with"
    text = f"## Bytes\n\n{EXPLAINED}\n\n"
    text += f"{chosen.objective}, {chosen.training} epochs, seed {chosen.seed}, maps {labels} labels:\n\n{table(rows)}"
    print(text)
    if chosen.publish:
        plot(rows, DOCS / "compress_codes.png")
        write_text(
            COMPRESS_PAGE,
            written_between(COMPRESS_PAGE, BEGIN, END, f"{text}\n\n![Recall against bytes](compress_codes.png)"),
        )


if __name__ == "__main__":
    main()
