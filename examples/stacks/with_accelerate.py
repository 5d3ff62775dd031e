"""Accelerate: `torchrun --nproc_per_node 2 with_accelerate.py` trains on two processes, CPUs or GPUs."""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from digits import FEATURES, SIZE, make_trunk, recall_at_1, training_loader
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch import nn

from pml_s2sd import collect_features, consolidate, s2sd


def train(accelerator, model, loss_func, optimizer, loader, epochs=range(10), checkpoint=None):
    model.train()
    for epoch in epochs:
        loader.set_epoch(epoch)
        for images, labels in loader:
            with accelerator.accumulate(model):
                accelerator.backward(loss_func(model(images), labels))
                optimizer.step()
                optimizer.zero_grad()
        if checkpoint:
            accelerator.save_state(checkpoint)  # accelerator.load_state(checkpoint), and epochs=range(3, 10), go on


if __name__ == "__main__":
    set_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2, mixed_precision="bf16")
    embedder, loss_func = s2sd(DistributedLossWrapper(losses.MultiSimilarityLoss()), FEATURES, SIZE)
    accelerator.register_for_checkpointing(loss_func.to(accelerator.device))
    model = nn.Sequential(make_trunk(), embedder)
    optimizer = torch.optim.Adam([*model.parameters(), *loss_func.parameters()], lr=1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, training_loader())
    train(accelerator, model, loss_func, optimizer, loader)
    trunk, embedder = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    embedder = consolidate(embedder, *collect_features(trunk, loader))
    accelerator.print(f"Recall@1 of {SIZE} numbers: {recall_at_1(nn.Sequential(trunk, embedder).cpu()):.3f}")
