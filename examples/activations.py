"""What a trunk's frozen front makes of images: computed once, kept in files, and trained on in place of the images.

    RUNS/activations/KEY/train-view0.npy …, train-turned0.npy …, test.npy        float16, (N, C, H, W)

KEY stands for the front and the images. A file is there whole or not at all: a run that was cut short makes what is
missing, and runs that differ in other settings share them. Files are mapped, not read: memory does not grow with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from images import make_augmentation
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from tqdm import tqdm

from pml_s2sd.training_features import TURNS, turn, turned_classes
from pml_s2sd.whole_file import whole_file

BATCH = 16
"""Images that the front takes at once: their activations stay in a CPU's cache."""


class Activations(Dataset):
    """Activations of a data set's images; a sample is that of an image, in a view drawn at random, and its label.

    Args:
        views: of the same images in the same order, (N, C, H, W) each.
        labels: (N,).
        names: the classes' names, by label.
    """

    def __init__(self, views: Sequence[np.ndarray], labels: torch.Tensor, names: Sequence[str]) -> None:
        self.views, self.labels, self.names = views, labels, names

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        view = self.views[int(torch.randint(len(self.views), ())) if len(self.views) > 1 else 0]
        return torch.from_numpy(view[index].astype(np.float32)), int(self.labels[index])


class TrainingActivations(Activations):
    """`Activations` to train on, and, for consolidation, of the images `turned` each way."""

    def __init__(
        self,
        views: Sequence[np.ndarray],
        labels: torch.Tensor,
        names: Sequence[str],
        turned: Sequence[np.ndarray] = (),
    ) -> None:
        super().__init__(views, labels, names)
        self.turned = turned

    def all_of_them(self) -> ConcatDataset:
        """Each view of each image, then the turned ones, each way as classes of its own."""
        ways = [(view, 0) for view in self.views] + [(x, way + 1) for way, x in enumerate(self.turned)]
        return ConcatDataset(
            [Activations([x], turned_classes(self.labels, torch.tensor(way)), self.names) for x, way in ways]
        )


def activations_of(
    front: nn.Module,
    images: tuple[Dataset, Dataset],
    folder: Path,
    *,
    views: int,
    turned: bool,
    device: torch.device,
    workers: int = 0,
) -> tuple[TrainingActivations, Activations]:
    """Both halves of the data as the front sees them, from the files in the folder; those that are missing are made.

    Args:
        front: from images (B, 3, H, W) to activations (B, C, H', W').
        images: to train on, and to test on.
        folder: holds a folder a front and data set.
        views: of each training image: as it is, and augmented.
        turned: whether training images are wanted turned, too.
        workers: processes that load images.
    """
    train, test = images
    folder = folder / key_of(front, images)
    folder.mkdir(parents=True, exist_ok=True)
    augment = make_augmentation()
    wanted: dict[str, tuple[Dataset, Callable[[torch.Tensor], torch.Tensor]]] = {
        f"train-view{view}": (train, augment if view else as_it_is) for view in range(views)
    }
    if turned:
        wanted |= {f"train-turned{way}": (train, lambda x, way=way: turn(x, way)) for way in range(TURNS)}
    wanted["test"] = (test, as_it_is)

    paths = {name: folder / f"{name}.npy" for name in wanted}
    missing = [name for name, path in paths.items() if not path.exists()]
    front.to(device)
    total = sum(len(wanted[name][0]) for name in missing)
    with tqdm(total=total, desc="activations", unit="image", disable=not missing) as progress:
        for number, name in enumerate(wanted):
            if name in missing:
                data, change = wanted[name]
                loader = DataLoader(data, BATCH, num_workers=workers)
                with torch.random.fork_rng():
                    torch.manual_seed(number)
                    write(paths[name], front, loader, change, device, progress)
    mapped = {name: np.load(path, mmap_mode="r") for name, path in paths.items()}
    made_of = lambda part: [x for name, x in mapped.items() if name.startswith(part)]  # noqa: E731
    return (
        TrainingActivations(made_of("train-view"), train.labels, train.names, made_of("train-turned")),
        Activations([mapped["test"]], test.labels, test.names),
    )


@torch.inference_mode()
def write(
    path: Path, front: nn.Module, loader: DataLoader, change: Callable, device: torch.device, progress: tqdm
) -> None:
    """The front's activations of a data set, batch by batch into a file."""
    with whole_file(path) as file:
        for number, (images, _) in enumerate(loader):
            x = front(change(images.to(device))).half().cpu().contiguous().numpy()
            if number == 0:
                header = {"descr": "<f2", "fortran_order": False, "shape": (len(loader.dataset), *x.shape[1:])}
                np.lib.format.write_array_header_2_0(file, header)
            file.write(x.tobytes())
            progress.update(len(images))


def as_it_is(images: torch.Tensor) -> torch.Tensor:
    return images


def key_of(front: nn.Module, images: Sequence[Dataset]) -> str:
    """Another one for another front or other weights of it, another augmentation, or other images."""
    digest = hashlib.sha256(f"{front} {make_augmentation()}".encode())
    for x in front.state_dict().values():
        digest.update(x.cpu().numpy().tobytes())
    for data in images:
        digest.update(data.fingerprint())
    return digest.hexdigest()[:16]
