"""PML's own trainer and tester: the embedder and the loss stand where PML's do."""

import torch
from digits import FEATURES, SIZE, dataset, make_trunk, seed_everything, training_loader
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester
from pytorch_metric_learning.trainers import MetricLossOnly
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from pml_s2sd import collect_features, consolidate, s2sd


def train(trunk, embedder, loss_func, loader, epochs=10):
    models = {"trunk": trunk, "embedder": embedder}
    trainer = MetricLossOnly(
        models,
        {f"{name}_optimizer": torch.optim.Adam(model.parameters(), lr=1e-3) for name, model in models.items()},
        batch_size=loader.batch_size,
        loss_funcs={"metric_loss": loss_func},
        dataset=loader.dataset,
        mining_funcs={"tuple_miner": miners.MultiSimilarityMiner()},
        sampler=loader.sampler,
        dataloader_num_workers=0,
    )
    trainer.train(num_epochs=epochs)


if __name__ == "__main__":
    seed_everything()
    trunk, loader = make_trunk(), training_loader()
    embedder, loss_func = s2sd(losses.MultiSimilarityLoss(), FEATURES, SIZE)
    train(trunk, embedder, loss_func, loader)
    embedder = consolidate(embedder, *collect_features(trunk, loader))
    calculator = AccuracyCalculator(include=("precision_at_1",), k=1)
    tester = GlobalEmbeddingSpaceTester(accuracy_calculator=calculator, dataloader_num_workers=0)
    found = tester.test({"unseen": dataset(train=False)}, 0, trunk, embedder)
    print(f"Recall@1 of {SIZE} numbers: {found['unseen']['precision_at_1_level0']:.3f}")
