"""torch.compile of the whole step: trunk, embedder, objective and distillation, forwards and backwards."""

import torch
from digits import FEATURES, SIZE, make_trunk, recall_at_1, seed_everything, training_loader
from pytorch_metric_learning import losses
from torch import nn

from pml_s2sd import collect_features, consolidate, s2sd

CLASSES = 5


def train(model, loss_func, loader, epochs=10, lr=1e-2, **compile_options):
    optimizer = torch.optim.Adam([*model.parameters(), *loss_func.parameters()], lr=lr)

    @torch.compile(**compile_options)
    def loss_of(images, labels):
        return loss_func(model(images), labels)

    for _ in range(epochs):
        for images, labels in loader:
            loss_of(images, labels).backward()
            optimizer.step()
            optimizer.zero_grad()


if __name__ == "__main__":
    seed_everything()
    trunk, loader = make_trunk(), training_loader()
    # An objective with proxies is one graph. PML's pair objectives ask the host for indices: several graphs, no error.
    embedder, loss_func = s2sd(losses.NormalizedSoftmaxLoss(CLASSES, SIZE), FEATURES, SIZE)
    train(nn.Sequential(trunk, embedder), loss_func, loader, fullgraph=True)
    embedder = consolidate(embedder, *collect_features(trunk, loader))
    print(f"Recall@1 of {SIZE} numbers: {recall_at_1(nn.Sequential(trunk, embedder)):.3f}")
