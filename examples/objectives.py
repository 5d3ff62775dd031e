"""The objectives that the examples train with, each with the miner that suits it, all of PML."""

from __future__ import annotations

from pytorch_metric_learning import losses, miners

# name -> (embedding_size, number of training classes) -> (objective, miner)
OBJECTIVES = {
    "multisimilarity": lambda d, classes: (
        losses.MultiSimilarityLoss(alpha=2, beta=40, base=0.5),
        miners.MultiSimilarityMiner(epsilon=0.1),
    ),
    "margin": lambda d, classes: (losses.MarginLoss(margin=0.2, beta=1.2), miners.DistanceWeightedMiner(cutoff=0.5)),
    "triplet": lambda d, classes: (losses.TripletMarginLoss(margin=0.2), miners.TripletMarginMiner(0.2, "semihard")),
    "contrastive": lambda d, classes: (losses.ContrastiveLoss(pos_margin=0, neg_margin=1), None),
    "ntxent": lambda d, classes: (losses.NTXentLoss(temperature=0.1), None),
    "supcon": lambda d, classes: (losses.SupConLoss(temperature=0.1), None),
    "proxyanchor": lambda d, classes: (losses.ProxyAnchorLoss(classes, d), None),
    "arcface": lambda d, classes: (losses.ArcFaceLoss(classes, d), None),
}
