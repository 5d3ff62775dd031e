"""A setting of the study made up here."""

import torch
from study.pretrained import VIEWS
from study.settings import SETTINGS

from pml_s2sd.training_features import TURNS


class FewFeatures:
    """Features of some samples to train on, two a class, in views and turned, and of 18 others."""

    kind, device = SETTINGS["frozen"], torch.device("cpu")
    test_labels = torch.arange(18) // 3

    def __init__(self, samples, columns):
        generator = torch.Generator().manual_seed(0)
        self.train_labels = torch.arange(samples) // 2
        self.train = torch.randn(VIEWS, samples, columns, generator=generator)
        self.turned = torch.randn(TURNS, samples, columns, generator=generator)
        self.test = torch.randn(18, columns, generator=generator)

    def train_batches(self, view):
        return self.train[view].split(8)

    def turned_batches(self, way):
        return self.turned[way].split(8)

    def test_batches(self):
        return self.test.split(8)
