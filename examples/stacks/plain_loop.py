"""A plain loop: autocast in bfloat16, gradients of two batches a step."""

import torch
from digits import FEATURES, SIZE, make_trunk, recall_at_1, seed_everything, training_loader
from pytorch_metric_learning import losses
from torch import nn

from pml_s2sd import collect_features, consolidate, s2sd

ACCUMULATED = 2


def train(trunk, embedder, loss_func, loader, epochs=10):
    model = nn.Sequential(trunk, embedder).train()
    optimizer = torch.optim.Adam([*model.parameters(), *loss_func.parameters()], lr=1e-3)
    for _ in range(epochs):
        for number, (images, labels) in enumerate(loader, start=1):
            with torch.autocast(images.device.type, dtype=torch.bfloat16):
                loss = loss_func(model(images), labels)
            (loss / ACCUMULATED).backward()
            if number % ACCUMULATED == 0:
                optimizer.step()
                optimizer.zero_grad()


if __name__ == "__main__":
    seed_everything()
    trunk, loader = make_trunk(), training_loader()
    # The paper's variants count the calls of the loss: with feature_delay=1000 * ACCUMULATED they wait 1000 steps.
    embedder, loss_func = s2sd(losses.MultiSimilarityLoss(), FEATURES, SIZE)
    train(trunk, embedder, loss_func, loader)
    embedder = consolidate(embedder, *collect_features(trunk, loader))
    print(f"Recall@1 of {SIZE} numbers: {recall_at_1(nn.Sequential(trunk, embedder)):.3f}")
