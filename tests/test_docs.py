"""The python blocks of the documentation run, in order, and give what the text says."""

import re
from pathlib import Path

import pytest
import torch
from pytorch_metric_learning import losses

from pml_s2sd import s2sd
from pml_s2sd.evaluation import RetrievalAccuracyCalculator
from pml_s2sd.evaluation._exported_model import load_exported_model
from pml_s2sd.report import read_run

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page):
    found = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)
    assert found
    return "\n".join(found)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_evaluation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(blocks("evaluation.md"), "evaluation.md", "exec"), names)
    assert {"recall_at_1", "f1"} == names["found"].keys()
    assert names["found"]["recall_at_1"] == 1.0
    assert names["hnsw"].recall == 1.0
    assert names["approximate"]["recall_at_1"] == 1.0
    for name in ("model.pt2", "model.onnx"):
        exported = load_exported_model(tmp_path / name)
        z = torch.nn.functional.normalize(exported.embed(names["images"]))
        torch.testing.assert_close(z, names["x"], rtol=1e-4, atol=1e-5)
    models = read_run(tmp_path / "runs" / "mine").models
    assert models["msdfa"]["epochs"][1] == {"epoch": 2, "loss": 0.5, "precision_at_1": 1.0}
    assert models["msdfa"].keys() == {"epochs", "precision_at_1", "r_precision", "effective_rank"}
    assert names["page"] == Path("runs/mine/report.html")
    assert f'data-value="{models["msdfa"]["effective_rank"]}"' in names["page"].read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert re.search(r"^recall_at_1/base +1\.000$", printed, re.MULTILINE)
    assert re.search(r"^overlap/features +0\.\d\d\d$", printed, re.MULTILINE)


def test_training():
    torch.manual_seed(0)
    names = {}
    exec(compile(blocks("training.md"), "training.md", "exec"), names)
    spaces = [names["loss_func"].base_loss, *names["loss_func"].aux_losses.values()]
    assert [(memory.loss.neg_margin, memory.queue_idx, memory.embedding_size) for memory in spaces] == [
        (0.5, 12, 8),
        (0.5, 12, 16),
        (0.5, 12, 32),
    ]


def test_consolidation():
    torch.manual_seed(0)
    names = {}
    exec(compile(blocks("consolidation.md"), "consolidation.md", "exec"), names)
    assert {size: made(names["features"]).shape for size, made in names["by_size"].items()} == {
        4: (240, 4), 8: (240, 8), 16: (240, 16),
    }  # fmt: skip
    assert torch.equal(names["deployed"][1].head.weight, names["by_size"][8].head.weight)
    torch.testing.assert_close(names["features"][:60], names["trunk"](names["images"]).mean((2, 3)))


def test_sizes_of_your_stack():
    rows = re.findall(
        r"^\| ([\d,]+) \(.*?\) \| (\d+) \| ([\d,]+) \| ([\d,]+) \|$", (DOCS / "stacks.md").read_text(), re.M
    )
    assert len(rows) == 4
    for row in rows:
        features, size, space, parameters = (int(number.replace(",", "")) for number in row)
        embedder, _ = s2sd(losses.ContrastiveLoss(), features, size)
        assert embedder.aux_sizes == (space,)
        assert sum(p.numel() for p in embedder.aux_heads.parameters()) == parameters


def test_every_metric_is_explained():
    table = (DOCS / "evaluation.md").read_text().split("## In a PML tester")[0]
    for metric in RetrievalAccuracyCalculator().get_curr_metrics():
        short = (
            metric.replace("recall_at", "") if metric.startswith("recall_at_") and metric != "recall_at_1" else metric
        )
        assert f"`{short}`" in table, metric
