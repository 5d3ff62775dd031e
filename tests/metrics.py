"""The metrics of evaluation once more: plain float64 loops over queries and pairs, nothing of the package or of PML."""

from __future__ import annotations

import numpy as np


def ranked_labels(query, labels, reference, reference_labels, ref_includes_query):
    """For each query the labels of the references by distance, itself left out."""
    for i, x in enumerate(query.astype(np.float64)):
        distances = [((x - other) ** 2).sum() for other in reference.astype(np.float64)]
        order = sorted(range(len(reference)), key=lambda j: distances[j])
        yield labels[i], [reference_labels[j] for j in order if not (ref_includes_query and j == i)]


def of_a_query(metric, label, ranked, largest_class):
    """The value of one query; None where nothing of its class is among the references."""
    R = sum(other == label for other in ranked)
    if R == 0:
        return None
    if metric.startswith("recall_at_"):
        return float(label in ranked[: int(metric.removeprefix("recall_at_"))])
    if metric == "precision_at_1":
        return float(ranked[0] == label)
    if metric == "r_precision":
        return sum(other == label for other in ranked[:R]) / R
    if metric == "mean_reciprocal_rank":
        ranks = [rank for rank, other in enumerate(ranked[:largest_class], 1) if other == label]
        return 1 / ranks[0] if ranks else 0.0
    depth = {"mean_average_precision_at_r": R, "mean_average_precision_at_1000": 1000}.get(metric, largest_class)
    hits, total = 0, 0.0
    for rank, other in enumerate(ranked[:depth], 1):
        if other == label:
            hits += 1
            total += hits / rank
    return total / R


def over_queries(metric, query, labels, reference, reference_labels, ref_includes_query, how="mean"):
    """The mean over queries, the "mean of classes", or the list of "classes"."""
    counts = [sum(reference_labels == label) for label in set(labels.tolist())]
    largest = max(counts) - int(ref_includes_query)
    values = {}
    for label, ranked in ranked_labels(query, labels, reference, reference_labels, ref_includes_query):
        value = of_a_query(metric, label, ranked, largest)
        if value is not None:
            values.setdefault(label, []).append(value)
    if how == "mean":
        return np.mean([value for of_class in values.values() for value in of_class])
    means = [np.mean(values[label]) for label in sorted(values)]
    return means if how == "classes" else np.mean(means)


def pairwise_f1(labels, clusters):
    both = positive = found = 0
    for i in range(len(labels)):
        for j in range(i):
            positive += labels[i] == labels[j]
            found += clusters[i] == clusters[j]
            both += labels[i] == labels[j] and clusters[i] == clusters[j]
    precision, recall = both / found, both / positive
    return 2 * precision * recall / (precision + recall)


def nmi(labels, clusters):
    """Mutual information over the mean of the entropies."""
    n = len(labels)

    def entropy(values):
        return -sum(values.count(v) / n * np.log(values.count(v) / n) for v in set(values))

    labels, clusters = list(labels), list(clusters)
    together = entropy(list(zip(labels, clusters, strict=True)))
    return 2 * (entropy(labels) + entropy(clusters) - together) / (entropy(labels) + entropy(clusters))


def spectral_decay(x):
    singular = np.sqrt(np.linalg.eigvalsh(x.T.astype(np.float64) @ x))
    p = singular / singular.sum()
    return sum(1 / len(p) * np.log(1 / len(p) / p_i) for p_i in p)


def effective_rank(x):
    singular = np.sqrt(np.linalg.eigvalsh(x.T.astype(np.float64) @ x))
    p = singular / singular.sum()
    return np.exp(-sum(p_i * np.log(p_i) for p_i in p))


def embedding_density(x, labels):
    unit = [row / np.linalg.norm(row) for row in x.astype(np.float64)]
    intra, centres = [], []
    for label in sorted(set(labels)):
        members = [u for u, other in zip(unit, labels, strict=True) if other == label]
        pairs = [1 - u @ v for i, u in enumerate(members) for j, v in enumerate(members) if i != j]
        if pairs:
            intra.append(np.mean(pairs))
        centre = np.mean(members, axis=0)
        centres.append(centre / np.linalg.norm(centre))
    inter = [1 - u @ v for i, u in enumerate(centres) for j, v in enumerate(centres) if i != j]
    return np.mean(intra) / np.mean(inter)
