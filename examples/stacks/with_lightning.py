"""Lightning: `python with_lightning.py 2` trains on two processes."""

import sys

import lightning
import torch
from digits import FEATURES, SIZE, make_trunk, recall_at_1, training_loader
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

from pml_s2sd import collect_features, consolidate, s2sd


class Retrieval(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.trunk, objective = make_trunk(), DistributedLossWrapper(losses.MultiSimilarityLoss())
        self.embedder, self.loss_func = s2sd(objective, FEATURES, SIZE)

    def train_dataloader(self):  # the sampler that Lightning would put in would mix the batches' classes
        return training_loader(50, self.global_rank, self.trainer.world_size)

    def training_step(self, batch, batch_number):
        loss = self.loss_func(self.embedder(self.trunk(batch[0])), batch[1])
        self.log_dict(self.loss_func.terms)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def on_train_end(self):
        embedder = consolidate(self.embedder, *collect_features(self.trunk, self.trainer.train_dataloader))
        self.deployed = torch.nn.Sequential(self.trunk, embedder)


if __name__ == "__main__":
    options = {"precision": "bf16-mixed", "accumulate_grad_batches": 2, "gradient_clip_val": 1.0, "max_epochs": 10}
    options |= {"accelerator": "cpu", "devices": int(sys.argv[-1]) if sys.argv[1:] else 1}
    lightning.Trainer(use_distributed_sampler=False, **options).fit(module := Retrieval())  # or fit(…, ckpt_path=…)
    print(f"Recall@1 of {SIZE} numbers: {recall_at_1(module.deployed):.3f}")
