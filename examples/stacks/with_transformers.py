"""Hugging Face's Trainer: the model returns its loss, and its embeddings for the metrics of an evaluation."""

import torch
from digits import SIZE, dataset
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from transformers import Trainer, TrainingArguments, ViTConfig, ViTModel

from pml_s2sd import collect_features, consolidate, s2sd

VIT = {"image_size": 8, "patch_size": 2, "num_channels": 1, "hidden_size": 64, "intermediate_size": 128}
TOKENS = {"field": "last_hidden_state", "tokens": "class"}


class Retrieval(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = ViTModel(ViTConfig(**VIT, num_hidden_layers=2, num_attention_heads=4), add_pooling_layer=False)
        self.embedder, self.loss_func = s2sd(losses.MultiSimilarityLoss(), 64, SIZE, **TOKENS)

    def forward(self, pixel_values, labels):  # with **kwargs, Trainer would not divide by the accumulated batches
        embeddings = self.embedder(self.trunk(pixel_values))
        return {"loss": self.loss_func(embeddings, labels), "embeddings": embeddings}


def metrics(found):
    embeddings = torch.nn.functional.normalize(torch.as_tensor(found.predictions))
    return AccuracyCalculator(include=("precision_at_1",), k=1).get_accuracy(embeddings, found.label_ids)


if __name__ == "__main__":
    train, test = ([{"pixel_values": x, "labels": y} for x, y in dataset(train)] for train in (True, False))
    options = {"num_train_epochs": 10, "learning_rate": 1e-3, "per_device_train_batch_size": 50, "bf16": True}
    options |= {"gradient_accumulation_steps": 2, "use_cpu": True, "report_to": "none", "output_dir": "runs/digits"}
    trainer = Trainer(model := Retrieval(), TrainingArguments(**options), None, train, test, compute_metrics=metrics)
    trainer.train()  # resume_from_checkpoint=True goes on: heads, proxies and counts are in the model
    features = collect_features(model.trunk, trainer.get_train_dataloader(), embedder=model.embedder)
    model.embedder = consolidate(model.embedder, *features)
    print(f"Recall@1 of {SIZE} numbers: {trainer.evaluate()['eval_precision_at_1']:.3f}")
