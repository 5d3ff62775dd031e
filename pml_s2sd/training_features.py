"""`collect_features`: what `consolidate` learns from, the trunk's features of a training set in several views."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler
from tqdm import tqdm

from ._argument_checks import check_int
from ._features import average_pool, max_pool, smallest_maps
from ._kept_features import InFolder, InMemory, Part
from ._modes import in_eval_mode, whole_state
from ._trunk_input import Inputs, call, device_of, inputs_and_labels, mask_of, placed, tensors
from ._turned_classes import FIRST, of_trained_classes
from .distributed import Gathering, Processes
from .embedder import Embedder

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

TURNS = 5
"""Ways to `turn` an image."""


class TrainingFeatures(NamedTuple):
    """Features of a training set, for `consolidate`.

    Attributes:
        features: (N, F), or the smallest feature maps that keep average and maximum, (N, F, 1, 2).
        labels: (N,), int64; those of turned images from 2^59 on, so that `consolidate` knows which classes the
            teachers were not trained on.
    """

    features: torch.Tensor | np.ndarray
    labels: torch.Tensor


def turn(images: torch.Tensor, way: int) -> torch.Tensor:
    """Images (B, C, H, W) that show something else: turned by 90, 180, 270 degrees, or their colours exchanged.

    Args:
        way: 0 to 4.

    Example:
        >>> import torch
        >>> from pml_s2sd.training_features import turn
        >>> turn(torch.arange(4.0).view(1, 1, 2, 2), way=1).flatten()
        tensor([3., 2., 1., 0.])
    """
    return images.rot90(way + 1, (2, 3)) if way < 3 else images.roll(way - 2, dims=1)


def turned_classes(labels: torch.Tensor, ways: torch.Tensor) -> torch.Tensor:
    """Of each label and way of turning a class of its own, from 2^59 on; a label below 0, not known, stays as it is.

    Args:
        labels: integers, below 2^59.
        ways: 0 where an image is not turned, otherwise one more than that of `turn`; they broadcast against labels.

    Example:
        >>> import torch
        >>> from pml_s2sd.training_features import turned_classes
        >>> turned_classes(torch.tensor([3, 3, -1]), torch.tensor([0, 1, 1]))
        tensor([                 3, 576460752303423491,                 -1])
    """
    _check_before_turning(labels)
    return torch.where(labels < 0, labels, labels + ways * FIRST)


def collect_features(
    trunk: nn.Module,
    loader: DataLoader,
    *,
    embedder: Embedder | None = None,
    views: int = 1,
    turned: bool = False,
    keep_maximum: bool | None = None,
    rows: int | None = None,
    path: str | Path | None = None,
    read: Callable[[Any], tuple[Inputs, torch.Tensor]] | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    process_group: ProcessGroup | DeviceMesh | None = None,
) -> TrainingFeatures:
    """The trunk's features of a training set, in eval mode, over some passes of a loader that augments.

    With torch.distributed each process goes through a loader of its own, such as one with a DistributedSampler, and
    all get the features of all.

    Args:
        trunk: from images to features (B, F) or feature maps (B, F, H, W), which are pooled. It stays as it was.
        loader: of the training set; batches of images and labels, or dicts that hold "labels". Some four views of each
            image are worth having.
        embedder: the one that will be consolidated: what the trunk returns is read as it does, with its `field` and
            `tokens`, and keep_maximum is its aggregate_pooling. None: features or feature maps alone are read.
        views: passes over the loader.
        turned: in the first pass each image is also taken turned by 90, 180 and 270 degrees, and with its colour
            channels exchanged in two ways, each way a class of its own: classes that the trunk was not trained on keep
            the map from overfitting the training classes. Six times the work of one pass. Needs square colour images.
        keep_maximum: feature maps (N, F, 1, 2) with the average and the maximum of the trunk's, which
            aggregate_pooling (variant MSDFA) needs; None: as the embedder, if any, needs it.
        rows: about how many rows of a large set to take, a sample drawn from it; None: all.
        path: a folder, made if need be, that keeps what there is so far: a run that was killed goes on there, after the
            last batch of a loader that does not shuffle, and otherwise after the last pass. It belongs to one trunk as
            it is now, one data set and one batch size; another is refused. The features are then memory-mapped. On
            several processes each keeps its own part, and what is returned is in memory.
        read: from a batch to the trunk's input and labels (B,), integers. The input is a tensor, such as of images
            (B, C, H, W); a dict, which is passed as keywords, and "attention_mask" of them to the embedder too; or a
            tuple, passed as arguments one by one. By default the first two of a batch; of a dict all but "labels", and
            these.
        device: where the trunk is, and its input is sent; that of its parameters unless given.
        seed: decides about the sample.
        process_group: as in `S2SDLoss`.

    Returns:
        ``(features, labels)``, ready for `consolidate`. On a CPU.

    Raises:
        TypeError, ValueError: on a batch, an output of the trunk, or a folder that does not fit; says what to do.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from pml_s2sd import collect_features
        >>> trunk = torch.nn.Conv2d(3, 16, 3)
        >>> loader = DataLoader(TensorDataset(torch.rand(10, 3, 8, 8), torch.arange(10) // 2), batch_size=4)
        >>> features, labels = collect_features(trunk, loader, views=2)
        >>> features.shape, labels.shape
        (torch.Size([20, 16]), torch.Size([20]))
    """
    check_int("views", views, at_least=1)
    if rows is not None:
        check_int("rows", rows, at_least=2)
    embedder = _checked_embedder(embedder)
    if keep_maximum is None:
        keep_maximum = getattr(embedder, "aggregate_pooling", False)
    processes = Processes(process_group)
    work = _Work(
        trunk,
        embedder,
        turned,
        keep_maximum,
        read or inputs_and_labels,
        device_of(trunk) if device is None else torch.device(device),
    )
    of_each = views + (TURNS if turned else 0)
    share = 1.0 if rows is None else rows / (_samples(loader, processes) * of_each)
    store: InMemory | InFolder = InMemory()
    if path is not None:
        made_with: dict[str, Any] = {
            "views": views,
            "turned": turned,
            "keep_maximum": keep_maximum,
            "rows": rows,
            "seed": seed,
        }
        made_with |= {"trunk": _fingerprint(trunk), **_describe(loader, processes)}
        if embedder is not None and (embedder.field, embedder.tokens) != (None, None):
            made_with |= {"field": embedder.field, "tokens": embedder.tokens}
        store = InFolder(_own(Path(path), processes), made_with)
    with torch.no_grad(), in_eval_mode(trunk), store:
        _fill(store, work, loader, views, share, seed)
    features, labels, ways = store.finished()
    if processes.several:
        gathering = Gathering(len(labels), processes.group)
        if not all(gathering.sizes):
            raise ValueError(f"the processes brought {gathering.sizes} samples; give each some, and more rows if set")
        features, labels, ways = (
            gathering.rows_of_all(torch.as_tensor(np.array(x)).to(device)).cpu() for x in (features, labels, ways)
        )
    if not len(labels):
        raise ValueError("no sample was taken; see the loader's dataset and drop_last, and rows if set")
    return TrainingFeatures(features, turned_classes(labels, ways) if turned else labels)


class _Work(NamedTuple):
    """What is done with a batch."""

    trunk: nn.Module
    embedder: Embedder | None
    turned: bool
    keep_maximum: bool
    read: Callable[[Any], tuple[Inputs, torch.Tensor]]
    device: torch.device

    def of(self, batch: Any, first_pass: bool, share: float, draw: torch.Generator) -> Iterator[Part]:
        """Features, labels and ways, on the CPU, of the samples drawn, and of their turned copies."""
        inputs, labels = self.read(batch)
        _check_batch(inputs, labels, self.turned, share)
        drawn = torch.rand(labels.numel(), generator=draw) < share
        if not drawn.any():
            return
        inputs = placed(inputs, self.trunk, self.device, None if drawn.all() else drawn)
        labels = labels.detach().cpu().long().flatten()[drawn]
        if self.turned:
            _check_before_turning(labels)
        yield Part(self._pooled(inputs, len(labels)), labels, torch.zeros_like(labels))
        for way in range(TURNS if self.turned and first_pass else 0):
            yield Part(self._pooled(turn(inputs, way), len(labels)), labels, torch.full_like(labels, way + 1))

    def _pooled(self, inputs: Any, samples: int) -> torch.Tensor:
        maps = call(self.trunk, inputs)
        if self.embedder is not None:
            reading, F = self.embedder.trunk_output, self.embedder.in_features
            maps = reading.features(maps, mask_of(inputs), F, maps_only=self.keep_maximum)
        _check_output(maps, samples, self.keep_maximum)
        maps = maps if maps.dtype == torch.float64 else maps.float()
        average = average_pool(maps)
        if not self.keep_maximum:
            return average.to("cpu", copy=True)  # what the trunk gave may be a part of more, or a buffer
        return smallest_maps(average, max_pool(maps)).cpu()


def _fill(store: InMemory | InFolder, work: _Work, loader: DataLoader, views: int, share: float, seed: int) -> None:
    """All passes that the store has not seen yet."""
    in_order = _in_order(loader)
    first_view, first_batch = store.goes_on(in_order)
    try:
        batches = len(loader)
    except TypeError:  # nobody knows
        batches = 0
    with tqdm(total=views * batches or None, desc="features", unit="batch", delay=3, leave=False) as progress:
        progress.update(first_view * batches)
        for view in range(first_view, views):
            for number, batch in enumerate(loader):
                progress.update()
                if view > first_view or number >= first_batch:
                    draw = torch.Generator().manual_seed(_mixed(seed, view, number))
                    store.append(view, number, list(work.of(batch, view == 0, share, draw)))
            store.end_of(view)


def _in_order(loader: DataLoader) -> bool:
    """Whether every pass has the same samples in the same order; a batch sampler of the user's may draw as it likes."""
    own_batches = getattr(loader, "batch_size", None) is None
    return isinstance(getattr(loader, "sampler", None), SequentialSampler) and not own_batches


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _checked_embedder(embedder: Any) -> Embedder | None:
    embedder = getattr(embedder, "_orig_mod", embedder)  # of torch.compile
    if embedder is None or isinstance(embedder, Embedder):
        return embedder
    raise TypeError(
        f"embedder must be the S2SDEmbedder that was trained, got {type(embedder).__name__}; pass the embedder itself, "
        "such as model[1] or model.module[1]"
    )


def _check_before_turning(labels: torch.Tensor) -> None:
    """Labels that turned classes do not have."""
    if not of_trained_classes(labels).all():
        raise ValueError(
            f"turned makes labels from 2^59 on, and the largest is {int(labels.max())}; number the classes"
        )


def _check_batch(inputs: Any, labels: Any, turned: bool, share: float) -> None:
    given = list(tensors(inputs))
    if not given or not isinstance(labels, torch.Tensor):
        raise TypeError(
            f"images and labels of a batch must be tensors, got {type(inputs).__name__} and {type(labels).__name__}"
        )
    samples = len(inputs) if isinstance(inputs, torch.Tensor) else labels.numel()
    if labels.is_floating_point() or labels.numel() != samples:
        raise ValueError(
            f"labels of a batch must be integers of shape ({samples},), one an image, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )
    if share < 1 and any(x.shape[:1] != (samples,) for x in given):
        shapes = ", ".join(str(tuple(x.shape)) for x in given)
        raise ValueError(
            f"rows draws samples, and needs a row of each in every tensor of a batch, ({samples}, …); got shapes "
            f"{shapes}; leave rows out"
        )
    if turned and not isinstance(inputs, torch.Tensor):
        raise TypeError(f"turned needs a tensor of images, got {type(inputs).__name__}; leave it out")
    if turned and (inputs.dim() != 4 or inputs.shape[1] != 3 or inputs.shape[2] != inputs.shape[3]):
        raise ValueError(f"turned needs square colour images (B, 3, H, H), got shape {tuple(inputs.shape)}")
    if turned and torch.equal(inputs[:, 0], inputs[:, 1]) and torch.equal(inputs[:, 0], inputs[:, 2]):
        raise ValueError(
            "turned exchanges colours, and all images of a batch are grey: new classes of theirs would be the same "
            "images; leave turned out"
        )


def _check_output(maps: Any, samples: int, keep_maximum: bool) -> None:
    if not isinstance(maps, torch.Tensor) or maps.dim() not in (2, 4) or len(maps) != samples:
        shape = f" of shape {tuple(maps.shape)}" if isinstance(maps, torch.Tensor) else ""
        raise TypeError(
            f"the trunk must return features ({samples}, F) or feature maps ({samples}, F, H, W), got "
            f"{type(maps).__name__}{shape}; give embedder=, made with the field or tokens that are meant"
        )
    if keep_maximum and maps.dim() != 4:
        raise ValueError(f"keep_maximum needs a trunk that returns feature maps, got shape {tuple(maps.shape)}")


def _fingerprint(trunk: nn.Module) -> str:
    """Of all parameters and buffers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in whole_state(trunk).items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _describe(loader: DataLoader, processes: Processes) -> dict[str, Any]:
    """What decides which samples come where."""
    dataset = getattr(loader, "dataset", None)
    return {
        "samples": None if dataset is None or isinstance(dataset, IterableDataset) else len(dataset),
        "batch_size": getattr(loader, "batch_size", None),
        "in_order": _in_order(loader),
        "processes": dist.get_world_size(processes.group) if processes.several else 1,
    }


def _samples(loader: DataLoader, processes: Processes) -> int:
    """Of one pass of all processes, about."""
    sampler: Any = getattr(loader, "sampler", loader)
    if getattr(loader, "batch_sampler", None) is not None and getattr(loader, "batch_size", None) is None:
        raise ValueError(
            "rows needs a loader whose sampler is known; give one without a batch_sampler, or leave rows out"
        )
    try:
        own = len(sampler)
    except TypeError as error:
        raise TypeError("rows needs a loader of known length, to know which share to draw; leave it out") from error
    return own * (dist.get_world_size(processes.group) if processes.several else 1)


def _own(path: Path, processes: Processes) -> Path:
    """The folder of this process."""
    return path / f"process-{dist.get_rank(processes.group)}" if processes.several else path
