"""Folders of runs, made by hand: the format of `pml_s2sd.report.run_folder`, without its writer."""

import json

from pml_s2sd.report.run_folder import PERCENTAGES, PROPERTIES

METRICS = [*PERCENTAGES, *PROPERTIES]


def record_of(start, epochs=3):
    """A finished model: every metric a number of its own."""
    record = {metric: start + 0.0123 * i for i, metric in enumerate(METRICS)}
    record["epochs"] = [{"epoch": e, "precision_at_1": start * e / epochs, "loss": 1 / e} for e in range(1, epochs + 1)]
    costs = {"deployed_parameters": 306544, "latency_ms_per_image": 0.25, "train_seconds": 61.2}
    return {**record, **costs, "singular_values": [3.0, 2.0, 1.0 + start]}


def write_run(root, name, models=None, **settings):
    folder = root / name
    folder.mkdir(parents=True)
    content = {
        "settings": {"name": name, "seed": 0, "embedding_size": 32, "epochs": 3, "aux_sizes": [64, 128], **settings},
        "versions": {"torch": "2.6.0"},
        "machine": "x86_64, 1 threads",
        "data": {"train_images": 10, "test_images": 3390, "train_classes": 2, "test_classes": 613},
        "models": models if models is not None else {"baseline": record_of(0.4), "msdfa": record_of(0.45)},
    }
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder
