"""Where the figures of an epoch also go: nowhere, to TensorBoard, or to Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from paper.run_folder import RunFolder

Log = Callable[[dict[str, float], int], None]


@contextmanager
def nowhere(folder: RunFolder) -> Iterator[Log]:
    yield lambda figures, epoch: None


@contextmanager
def tensorboard(folder: RunFolder) -> Iterator[Log]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder.path / "tensorboard")) as writer:

        def log(figures: dict[str, float], epoch: int) -> None:
            for name, figure in figures.items():
                writer.add_scalar(name, figure, epoch)

        yield log


@contextmanager
def wandb(folder: RunFolder) -> Iterator[Log]:
    import wandb

    name = f"{folder.path.parent.name}-{folder.path.name}"
    with wandb.init(project="pml-s2sd", name=name, dir=folder.path, config=folder.made_with()) as run:
        yield lambda figures, epoch: run.log(figures, step=epoch)


LOGGERS = {"none": nowhere, "tensorboard": tensorboard, "wandb": wandb}
