"""Sentences of Python's own manual, and their topics: every second one is trained on, the others are retrieved."""

import itertools
import re
import tempfile
from pydoc_data.topics import topics
from typing import Any

import torch
from datasets import Dataset
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn.functional import normalize
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

FEATURES, SIZE = 64, 8


def labelled(train: bool) -> Dataset:
    """Columns sentence and label, the topic; at most twenty sentences a topic."""
    rows = [
        {"sentence": sentence, "label": label}
        for label, name in enumerate(sorted(topics)[not train :: 2])
        for sentence in [s for s in re.split(r"(?<=[.:]) ", " ".join(topics[name].split())) if 40 < len(s) < 200][:20]
    ]
    return Dataset.from_list(rows)


def pairs(train: bool) -> Dataset:
    """Columns anchor and positive: a sentence and the next one of its topic."""
    rows = list(labelled(train))
    following = [(row, after) for row, after in itertools.pairwise(rows) if row["label"] == after["label"]]
    return Dataset.from_list([{"anchor": a["sentence"], "positive": b["sentence"]} for a, b in following[::2]])


def make_trunk() -> list:
    """A BERT of one layer with random weights and a vocabulary of words, and the mean over its tokens: (B, 64)."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    words = trainers.WordLevelTrainer(vocab_size=2000, special_tokens=list(special.values()))
    tokenizer.train_from_iterator(labelled(train=True)["sentence"], words)
    sizes = {"hidden_size": FEATURES, "intermediate_size": 2 * FEATURES, "num_attention_heads": 4}
    bert = BertModel(BertConfig(vocab_size=2000, num_hidden_layers=1, max_position_embeddings=64, **sizes))
    with tempfile.TemporaryDirectory() as folder:
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special).save_pretrained(folder)
        bert.save_pretrained(folder)
        return [Transformer(folder), Pooling(FEATURES)]


def training_arguments(**options: Any) -> SentenceTransformerTrainingArguments:
    """Batches hold several sentences of each topic; of pairs they may be `batch_sampler="no_duplicates"`."""
    defaults = {"num_train_epochs": 10, "learning_rate": 1e-3, "per_device_train_batch_size": 50, "use_cpu": True}
    defaults |= {"batch_sampler": "group_by_label", "report_to": "none", "output_dir": "runs/sentences"}
    return SentenceTransformerTrainingArguments(**{**defaults, **options})


def recall_at_1(model: SentenceTransformer) -> float:
    """How often the nearest sentence of the topics that were not trained on is of the same topic."""
    test = labelled(train=False)
    embeddings = normalize(model.encode(list(test["sentence"]), convert_to_tensor=True))
    calculator = AccuracyCalculator(include=("precision_at_1",), k=1)
    return calculator.get_accuracy(embeddings, torch.tensor(test["label"]))["precision_at_1"]
