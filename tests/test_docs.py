"""The python blocks of the documentation run, in order, and give what the text says."""

import re
from pathlib import Path

import pytest

from pml_s2sd.accuracy import RetrievalAccuracyCalculator

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
    assert (tmp_path / "model.pt2").exists()
    printed = capsys.readouterr().out
    assert re.search(r"^recall_at_1/base +1\.000$", printed, re.MULTILINE)
    assert re.search(r"^overlap/features +0\.\d\d\d$", printed, re.MULTILINE)


def test_every_metric_is_explained():
    table = (DOCS / "evaluation.md").read_text().split("## In a PML tester")[0]
    for metric in RetrievalAccuracyCalculator().get_curr_metrics():
        short = (
            metric.replace("recall_at", "") if metric.startswith("recall_at_") and metric != "recall_at_1" else metric
        )
        assert f"`{short}`" in table, metric
