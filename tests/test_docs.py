"""The python blocks of the documentation run, in order, and give what the text says."""

import re
from pathlib import Path

import faiss
import numpy as np
import onnxruntime
import pytest
import torch
from images import EmojiDataset
from PIL import Image
from pytorch_metric_learning import losses

from pml_s2sd import s2sd
from pml_s2sd.embedder import Embedder
from pml_s2sd.evaluation import RetrievalAccuracyCalculator
from pml_s2sd.evaluation._exported_model import load_exported_model
from pml_s2sd.report import read_run

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page):
    found = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)
    assert found
    return "\n".join(found)


RUN_BELOW = {"evaluation.md", "training.md", "consolidation.md", "settings.md", "deployment.md", "start.md"}
RUN_ELSEWHERE = {
    "compress.md": "test_compress.py",
    "databases.md": "test_databases.py",
    "stacks.md": "test_stacks_trunks.py",
}
"""Pages with python blocks, and the tests that run them."""


def test_every_page_with_python_blocks_is_run():
    pages = {page.relative_to(DOCS).as_posix(): page.read_text() for page in DOCS.rglob("*.md")}
    assert {name for name, text in pages.items() if "```python" in text} == RUN_BELOW | RUN_ELSEWHERE.keys()
    for page, test in RUN_ELSEWHERE.items():
        assert page in (Path(__file__).parent / test).read_text()


def test_what_is_no_python_says_what_it_is():
    """A fence without a language is a command or a drawing, never code that no test runs."""
    for page in [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]:
        fences = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        assert {language for language, _ in fences} <= {"", "python", "diff", "shell", "text", "math"}, page.name
        assert not any(re.search(r"^(import|from) ", code, re.MULTILINE) for language, code in fences if not language)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_evaluation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(blocks("evaluation.md"), "evaluation.md", "exec"), names)
    assert {"recall_at_1", "f1"} == names["found"].keys()
    assert names["found"]["recall_at_1"] == 1.0
    assert names["hnsw"].recall == 1.0
    assert names["approximate"]["recall_at_1"] == 1.0
    assert names["by_knn"]["exact"] == pytest.approx(names["by_knn"]["ivfpq"], abs=0.05)
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


def test_settings():
    torch.manual_seed(0)
    names = {}
    exec(compile(blocks("settings.md"), "settings.md", "exec"), names)
    assert {size: made.embedding_size for size, made in names["by_size"].items()} == {4: 4, 8: 8, 16: 16}
    assert names["embedder"].aux_sizes == (512, 1024, 1536, 2048)
    assert names["loss_func"].feature_delay == 1000


def test_deployment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(blocks("deployment.md"), "deployment.md", "exec"), names)
    x = torch.randn(3, 16)
    assert torch.equal(names["linear"](x), names["embedder"].eval()(x))


@pytest.mark.slow
def test_start(tmp_path, monkeypatch, capsys):
    drawings = EmojiDataset(train=True)
    for i in (drawings.labels < 18).nonzero().flatten().tolist():
        folder = tmp_path / "photographs" / f"{int(drawings.labels[i]):02}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawings.images[i].permute(1, 2, 0).numpy()).save(folder / f"{drawings.styles[i]}.png")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(blocks("start.md"), "start.md", "exec"), names)

    seen, unseen, deployed = names["seen"], names["unseen"], names["deployed"]
    assert {file.parent.name for file in seen.files} == {f"{label:02}" for label in range(0, 18, 2)}
    assert isinstance(deployed[1], Embedder)
    assert deployed[1].head.weight.shape == (32, 1280)
    (found,) = re.findall(r"consolidated (0\.\d+|1\.000)", capsys.readouterr().out)
    by_chance = (len(unseen) / 9 - 1) / (len(unseen) - 1)
    assert float(found) > 3 * by_chance
    x = torch.stack([unseen[i][0] for i in range(3)])
    (z,) = onnxruntime.InferenceSession("model.onnx").run(None, {"input": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(z), deployed(x), rtol=1e-3, atol=1e-4)
    index = faiss.read_index("photographs.faiss")
    z = torch.nn.functional.normalize(torch.from_numpy(z)).numpy()
    similarities, rows = index.search(z, 1)
    assert index.ntotal == len(seen) + len(unseen)
    assert [names["everything"].files[row] for row in rows[:, 0]] == unseen.files[:3]
    assert np.allclose(similarities, 1, atol=1e-3)


def test_every_metric_is_explained():
    table = (DOCS / "evaluation.md").read_text().split("## In a PML tester")[0]
    for metric in RetrievalAccuracyCalculator().get_curr_metrics():
        short = (
            metric.replace("recall_at", "") if metric.startswith("recall_at_") and metric != "recall_at_1" else metric
        )
        assert f"`{short}`" in table, metric
