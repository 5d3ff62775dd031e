"""sentence-transformers: labels or pairs, checkpoints that keep the auxiliary heads, a Dense at the end."""

import torch
from pytorch_metric_learning import losses
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.base.modules import Dense, Module
from sentences import FEATURES, SIZE, labelled, make_trunk, recall_at_1, training_arguments

from pml_s2sd import consolidate, s2sd


class Head(Module):  # a module of the model: checkpoints do not hold what a loss has learnt
    def __init__(self):
        super().__init__()
        self.embedder, self.loss_func = s2sd(losses.MultiSimilarityLoss(), FEATURES, SIZE)

    def forward(self, sentences):
        return {**sentences, "sentence_embedding": self.embedder(sentences["sentence_embedding"])}

    save = Module.save_torch_weights
    load = classmethod(lambda cls, folder: cls.load_torch_weights(folder, model=cls()))


class Loss(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.loss_func = model, model[-1].loss_func

    def forward(self, columns, labels):
        batch = torch.cat([self.model(sentences)["sentence_embedding"] for sentences in columns])
        return self.loss_func(batch, torch.arange(len(batch) // 2).repeat(2) if labels is None else labels)  # pairs


if __name__ == "__main__":
    train, model = labelled(train=True), SentenceTransformer(modules=[*make_trunk(), Head()])
    SentenceTransformerTrainer(model, training_arguments(), train, loss=Loss(model)).train()
    trunk = SentenceTransformer(modules=list(model)[:-1])
    head = consolidate(model[-1].embedder, trunk.encode(train["sentence"]), train["label"]).head
    dense = Dense(FEATURES, SIZE, True, torch.nn.Identity(), init_weight=head.weight, init_bias=head.bias)
    print(f"Recall@1 of {SIZE} numbers: {recall_at_1(SentenceTransformer(modules=[*trunk, dense])):.3f}")
