"""Hugging Face's Trainer, as examples/stacks/with_transformers.py has it, against the same steps written out."""

import copy

import pytest
import torch
from digits import dataset
from stacks_reference import assert_same

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
import with_transformers
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from transformers import Trainer, TrainingArguments

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
TRAIN = [{"pixel_values": image, "labels": label} for image, label in dataset(train=True)][:80]
TEST = [{"pixel_values": image, "labels": label} for image, label in dataset(train=False)][:70]


class Watched(with_transformers.Retrieval):
    """Remembers its training batches."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__()
        self.batches = []

    def forward(self, pixel_values, labels):
        if self.training:
            self.batches.append((pixel_values, labels))
        return super().forward(pixel_values, labels)


def make_trainer(folder, model, **options):
    arguments = TrainingArguments(
        output_dir=str(folder), num_train_epochs=2, per_device_train_batch_size=20, per_device_eval_batch_size=32,
        gradient_accumulation_steps=2, optim="sgd", learning_rate=0.1, lr_scheduler_type="constant", max_grad_norm=1.0,
        use_cpu=True, report_to="none", disable_tqdm=True, **{"save_strategy": "no", **options},
    )  # fmt: skip
    return Trainer(model, arguments, None, TRAIN, TEST, compute_metrics=with_transformers.metrics)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_run_is_the_steps_written_out(tmp_path, bf16):
    model = Watched()
    before, expected = copy.deepcopy(model), copy.deepcopy(model)
    trainer = make_trainer(tmp_path, model, bf16=bf16)
    trainer.train()
    assert len(model.batches) == model.loss_func.calls == 2 * 4
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1)
    for pair in zip(model.batches[::2], model.batches[1::2], strict=True):
        values = []
        for pixel_values, labels in pair:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                values.append(expected.loss_func(expected.embedder(expected.trunk(pixel_values)), labels))
        expected.zero_grad()
        (torch.stack(values).sum() / 2).backward()
        torch.nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
        optimizer.step()
    assert_same(model, expected)
    steps = [p.detach() - q.detach() for p, q in zip(model.parameters(), before.parameters(), strict=True)]
    assert torch.cat([step.flatten() for step in steps]).norm() > 0.05
    assert not trainer.model_accepts_loss_kwargs  # of a forward with **kwargs it would not divide the loss


def test_a_checkpoint_goes_on_exactly(tmp_path):
    model, resumed = Watched(), Watched()
    make_trainer(tmp_path, model, save_strategy="epoch").train()
    (first, _) = sorted(tmp_path.glob("checkpoint-*"))
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.zero_()
    make_trainer(tmp_path, resumed).train(resume_from_checkpoint=str(first))
    assert len(resumed.batches) == 4
    assert resumed.loss_func.calls == model.loss_func.calls == 2 * 4
    assert_same(resumed, model, rtol=0, atol=0)


def test_an_evaluation_measures_the_small_embeddings(tmp_path):
    model = Watched().train()
    trainer = make_trainer(tmp_path, model)
    found = trainer.evaluate()
    model.eval()
    images, labels = (torch.stack([row[name] for row in TEST]) for name in ("pixel_values", "labels"))
    with torch.no_grad():
        embeddings = model.embedder(model.trunk(images))
        values = [
            model.loss_func(model.embedder(model.trunk(x)), y)
            for x, y in zip(images.split(32), labels.split(32), strict=True)
        ]
    assert embeddings.shape == (70, 8)
    calculator = AccuracyCalculator(include=("precision_at_1",), k=1)
    normalized = torch.nn.functional.normalize(embeddings)
    assert found["eval_precision_at_1"] == calculator.get_accuracy(normalized, labels)["precision_at_1"]
    mean = sum(float(loss) * len(y) for loss, y in zip(values, labels.split(32), strict=True)) / 70
    assert found["eval_loss"] == pytest.approx(mean, rel=1e-4)
    assert model.loss_func.calls == 0
