"""sentence-transformers, as examples/stacks/with_sentence_transformers.py has it."""

import pytest
import torch
from stacks_reference import assert_same, quickly

pytest.importorskip("sentence_transformers")
pytest.importorskip("datasets")
import with_sentence_transformers as example
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.base.modules import Dense
from sentences import FEATURES, SIZE, labelled, make_trunk, pairs, training_arguments

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
LABELLED, PAIRS = labelled(train=True).select(range(80)), pairs(train=True).select(range(40))


def make_model():
    torch.manual_seed(0)
    return SentenceTransformer(modules=[*make_trunk(), example.Head()], device="cpu")


def make_trainer(folder, model, rows, **options):
    arguments = training_arguments(
        output_dir=str(folder), num_train_epochs=2, per_device_train_batch_size=20, disable_tqdm=True,
        lr_scheduler_type="constant", **{"save_strategy": "no", **options},
    )  # fmt: skip
    return SentenceTransformerTrainer(model, arguments, rows, loss=example.Loss(model))


@pytest.mark.parametrize("kind", ["labels", "pairs"])
def test_training_moves_every_space(tmp_path, kind):
    model, before = make_model(), make_model()
    rows = LABELLED if kind == "labels" else PAIRS
    sampler = "group_by_label" if kind == "labels" else "no_duplicates"
    make_trainer(tmp_path, model, rows, batch_sampler=sampler).train()
    assert model[-1].loss_func.calls == 2 * len(rows) // 20
    moved = {
        n for (n, p), q in zip(model.named_parameters(), before.parameters(), strict=True) if not torch.equal(p, q)
    }
    assert {name for name in moved if name.startswith("2.")} == {
        f"2.embedder.{head}.{parameter}" for head in ("head", "aux_heads.0") for parameter in ("weight", "bias")
    }  # fmt: skip
    assert any(name.startswith("0.") for name in moved)


def test_pairs_are_classes_of_two():
    model = make_model().eval()
    columns = [model.preprocess(list(PAIRS[name][:6])) for name in ("anchor", "positive")]
    model[-1].train()
    found = example.Loss(model)(columns, None)
    trunk = torch.nn.Sequential(*list(model)[:-1])
    features = torch.cat([trunk(dict(column))["sentence_embedding"] for column in columns])
    embedder, loss_func = model[-1].embedder, model[-1].loss_func
    expected = loss_func(embedder(features), torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]))
    torch.testing.assert_close(found, expected)


def test_a_checkpoint_goes_on_exactly_and_keeps_the_heads(tmp_path):
    model, resumed = make_model(), make_model()
    make_trainer(tmp_path, model, LABELLED, save_strategy="epoch").train()
    (first, _) = sorted(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.zero_()
    make_trainer(tmp_path, resumed, LABELLED).train(resume_from_checkpoint=str(first))
    assert resumed[-1].loss_func.calls == model[-1].loss_func.calls == 2 * 4
    assert_same(resumed, model, rtol=0, atol=0)


def test_deployed_as_dense_without_this_package(tmp_path):
    model = make_model()
    trunk = SentenceTransformer(modules=list(model)[:-1], device="cpu")
    sentences = list(LABELLED["sentence"])
    features = trunk.encode(sentences)
    head = quickly(model[-1].embedder, features, LABELLED["label"]).head
    dense = Dense(FEATURES, SIZE, True, torch.nn.Identity(), init_weight=head.weight, init_bias=head.bias)
    SentenceTransformer(modules=[*trunk, dense], device="cpu").save_pretrained(str(tmp_path))
    loaded = SentenceTransformer(str(tmp_path), device="cpu")
    assert loaded.get_embedding_dimension() == SIZE
    assert all("pml_s2sd" not in type(module).__module__ for module in loaded)
    expected = torch.as_tensor(features) @ head.weight.detach().T
    torch.testing.assert_close(torch.as_tensor(loaded.encode(sentences)), expected, rtol=1e-4, atol=1e-5)
