"""What compares benchmarks with the committed ones, and the deployed program with the plain one; no times."""

import json

import pytest
import torch
from authors_step import Formulas
from check import Row, compare, table
from deployed import program
from loss_step import LABELS, MSDF, WORKLOADS, B, F, d
from measure import RESULTS, medians, read, save
from plot import added, of_a_loss_step
from resnet import PARAMETERS, resnet50
from tables import TABLES, markdown, with_tables

from pml_s2sd import s2sd

COMMITTED = {
    "multisimilarity": {"ratio": 1.04, "milliseconds": {"whole": 180.0}},
    "margin": {"ratio": 1.2, "same program": True, "operations": 5},
    "B = 8192": {"time ratio": 1.1},
}


def found(**changed):
    figures = {"multisimilarity": {"ratio": 1.05, "milliseconds": {"whole": 90.0}}, "margin": dict(COMMITTED["margin"])}
    figures["margin"].update(changed)
    return figures


def test_ratios_are_compared_and_seconds_are_not():
    rows = compare(COMMITTED, found())
    assert rows == [
        Row("multisimilarity, ratio", 1.04, 1.05),
        Row("margin, ratio", 1.2, 1.2),
        Row("margin, same program", True, True),
    ]
    assert all(row.holds(0.01) for row in rows)


@pytest.mark.parametrize(("ratio", "holds"), [(1.2, True), (1.31, True), (1.33, False), (1.09, True), (1.07, False)])
def test_a_ratio_holds_within_the_tolerance_in_both_directions(ratio, holds):
    assert compare(COMMITTED, found(ratio=ratio))[1].holds(0.1) is holds


def test_what_was_true_has_to_be_true_whatever_the_tolerance():
    assert not compare(COMMITTED, found(**{"same program": False}))[2].holds(10.0)


def test_a_ratio_that_is_only_on_one_side_differs():
    figures = found(**{"memory ratio": 0.5})
    del figures["margin"]["ratio"]
    rows = {row.name: row for row in compare(COMMITTED, figures)}
    assert rows["margin, memory ratio"] == Row("margin, memory ratio", None, 0.5)
    assert rows["margin, ratio"] == Row("margin, ratio", 1.2, None)
    assert [row.holds(0.1) for row in rows.values()].count(False) == 2


def test_the_table_says_what_was_expected_and_found():
    lines = table(compare(COMMITTED, found(ratio=1.5)), 0.1).splitlines()
    assert lines[0].split() == ["ratio", "expected", "found"]
    assert lines[1].split() == ["multisimilarity,", "ratio", "1.04", "1.05"]
    assert lines[2].split() == ["margin,", "ratio", "1.2", "1.5", "differs"]


def test_results_are_read_as_they_were_saved(tmp_path, capsys):
    save("name", COMMITTED, tmp_path)
    assert read("name", tmp_path)["figures"] == COMMITTED
    assert read("name", tmp_path)["machine"]["torch"].startswith(torch.__version__.split("+")[0])
    assert json.loads(capsys.readouterr().out.removeprefix("name: ")) == COMMITTED
    assert [path.name for path in tmp_path.iterdir()] == ["name.json"]


def test_what_is_timed_takes_turns_none_always_first():
    calls = []
    medians({name: lambda name=name: calls.append(name) for name in "ab"}, repeats=3, warm_up=1)
    assert "".join(calls) == "abbaabba"


def test_the_trunk_has_resnet_50s_parameters_and_features():
    trunk = resnet50().eval()
    assert sum(p.numel() for p in trunk.parameters()) == PARAMETERS
    assert trunk(torch.zeros(1, 3, 64, 64)).shape == (1, 2048)


def test_programs_are_told_apart_by_operations_and_arguments():
    x = torch.randn(2, 3)
    linear, other = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    models = [linear, torch.nn.Sequential(other), torch.nn.Linear(3, 3, bias=False)]
    models += [torch.nn.Sequential(linear, torch.nn.Softmax(dim)) for dim in (0, 1)]
    programs = [program(torch.export.export(model.eval(), (x,))) for model in models]
    assert programs[0] == programs[1]
    assert all(programs[a] != programs[b] for a in range(2, 5) for b in range(a))


@pytest.mark.parametrize("name", TABLES)
def test_every_table_can_be_made_from_the_committed_results(name):
    lines = markdown(name, RESULTS).splitlines()
    assert len(lines) > 2
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_tables_are_put_between_their_marks_only():
    page = "before\n\n<!-- table deployed -->\nold\n<!-- end -->\n\nafter\n"
    written = with_tables(page, RESULTS)
    assert written.startswith("before\n\n<!-- table deployed -->\n") and written.endswith("<!-- end -->\n\nafter\n")
    assert "old" not in written and markdown("deployed", RESULTS) in written
    assert with_tables(written, RESULTS) == written


@pytest.mark.parametrize("name", ["multisimilarity", "proxyanchor"])
def test_the_formulas_beside_which_s2sd_is_timed_are_the_same_loss(name):
    """Also an independent check of the variant MSDF at its real sizes."""
    objective, miner = WORKLOADS[name]
    formulas = Formulas(objective(), miner).double()
    embedder, loss_func = s2sd(objective(), F, d, miner=miner(), **MSDF)
    embedder.double(), loss_func.double()
    embedder.head.load_state_dict(formulas.head.state_dict())
    embedder.aux_heads.load_state_dict(formulas.aux_heads.state_dict())
    ours = [loss_func.base_loss, *loss_func.aux_losses.values()]
    for loss, theirs in zip(ours, formulas.objectives, strict=True):
        loss.load_state_dict(theirs.state_dict())
    features = torch.randn(B, F, dtype=torch.float64)
    features_too = features.clone().requires_grad_()
    features.requires_grad_()
    expected, found = formulas(features, LABELS), loss_func(embedder(features_too), LABELS)
    assert abs(found.item() - expected.item()) < 1e-10
    expected.backward(), found.backward()
    torch.testing.assert_close(features_too.grad, features.grad, rtol=1e-9, atol=1e-12)


def test_what_the_bars_are_made_of():
    of_one = {
        "milliseconds": {"whole": 9.0, "heads": 5.0, "base objective": 1.0},
        "milliseconds over": {"auxiliary objectives": 2.0, "distillation": 0.5},
    }
    measured = {"margin": of_one, "margin, our miner": of_one, "recommended, margin": of_one, "optimizer step": {}}
    parts = {"heads": 5.0, "base objective": 1.0, "auxiliary objectives": 2.0, "distillation": 0.5}
    assert of_a_loss_step(measured) == {"MSDF, margin": parts, "recommended, margin": parts}
    assert added({"MSDF, B = 32": {"milliseconds more": {"heads": 7.0}}}) == {"MSDF": {"heads": 7.0}}
