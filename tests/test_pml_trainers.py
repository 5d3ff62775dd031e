"""PML's trainers, testers and logging presets, unmodified, with S2SD; each training run improves the embeddings."""

import logging

import numpy as np
import pytest
import torch
from images import EmojiDataset
from network import SmallResNet
from pml_cases import exported
from pytorch_metric_learning import losses, miners, samplers, testers, trainers
from pytorch_metric_learning.utils import logging_presets
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch.utils.data import Dataset

from pml_s2sd import S2SDEmbedder, S2SDLoss, s2sd

CLASSES, ITERATIONS, BATCH = 24, 30, 24
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
logging.getLogger("PML").setLevel(logging.ERROR)


class SomeEmoji(Dataset):
    """The drawings of the first 24 unseen emoji."""

    def __init__(self):
        dataset = EmojiDataset(train=False)
        chosen = dataset.labels < CLASSES
        self.images, self.labels = dataset.images[chosen].float() / 255, dataset.labels[chosen]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], int(self.labels[index])


class Pairs(SomeEmoji):
    """(anchor, another drawing of the same emoji, label)."""

    def __getitem__(self, index):
        (others,) = torch.where(self.labels == self.labels[index])
        other = others[(others > index).nonzero()[0, 0] if (others > index).any() else 0]
        return self.images[index], self.images[other], int(self.labels[index])


class WithParents(SomeEmoji):
    """Labels of two levels: the emoji, and the group of four that it belongs to."""

    def __getitem__(self, index):
        label = int(self.labels[index])
        return self.images[index], torch.tensor([label, label // 4])


@pytest.fixture(scope="module")
def emoji():
    return SomeEmoji()


def make_models(**options):
    torch.manual_seed(0)
    np.random.seed(0)
    embedder, loss_func = s2sd(
        losses.TripletMarginLoss(), SmallResNet.out_channels, 8, "MSDFA",
        aux_sizes=(16, 32), distill_weight=1.0, feature_weight=1.0, feature_delay=5, **options,
    )  # fmt: skip
    return {"trunk": SmallResNet(), "embedder": embedder}, loss_func


def adam(models, lr=2e-3):
    return {f"{name}_optimizer": torch.optim.Adam(model.parameters(), lr=lr) for name, model in models.items()}


def common(dataset, iterations=ITERATIONS):
    sampler = samplers.MPerClassSampler(
        dataset.labels, m=3, batch_size=BATCH, length_before_new_iter=BATCH * iterations
    )
    return {
        "batch_size": BATCH, "dataset": dataset, "sampler": sampler, "dataloader_num_workers": 0,
        "iterations_per_epoch": iterations,
    }  # fmt: skip


def make_tester(cls=testers.GlobalEmbeddingSpaceTester, **options):
    calculator = AccuracyCalculator(include=("precision_at_1", "mean_average_precision_at_r"), k="max_bin_count")
    return cls(batch_size=64, dataloader_num_workers=0, accuracy_calculator=calculator, **options)


def recall(models, dataset):
    accuracies = make_tester().test({"all": dataset}, 0, models["trunk"], models["embedder"])
    return accuracies["all"]["precision_at_1_level0"]


def assert_improves(trainer, models, dataset):
    before = recall(models, dataset)
    trainer.train(num_epochs=1)
    after = recall(models, dataset)
    assert after > before + 0.1, (before, after)


def test_no_class_is_missing():
    assert set(exported(trainers)) == {
        "BaseTrainer", "MetricLossOnly", "TrainWithClassifier", "TwoStreamMetricLoss", "CascadedEmbeddings",
        "DeepAdversarialMetricLearning",
    }  # fmt: skip
    assert set(exported(testers)) == {
        "BaseTester", "GlobalEmbeddingSpaceTester", "GlobalTwoStreamEmbeddingSpaceTester", "WithSameParentLabelTester",
    }  # fmt: skip


@pytest.mark.pml("trainers", "BaseTrainer")
@pytest.mark.pml("testers", "BaseTester")
def test_abstract_classes_compute_nothing(emoji):
    models, loss_func = make_models()
    trainer = trainers.BaseTrainer(models, adam(models), loss_funcs={"metric_loss": loss_func}, **common(emoji))
    with pytest.raises((NotImplementedError, TypeError), match=r"^$|calculate_loss\(\) takes"):
        trainer.train(num_epochs=1)
    tester = make_tester(testers.BaseTester)
    with pytest.raises(NotImplementedError):
        tester.test({"all": emoji}, 0, models["trunk"], models["embedder"])
    assert tester.get_all_embeddings(emoji, models["trunk"], models["embedder"])[0].shape == (len(emoji), 8)


@pytest.mark.pml("trainers", "MetricLossOnly")
@pytest.mark.parametrize("mining", ["none", "tuple_miner", "subset_batch_miner", "own"])
def test_metric_loss_only(emoji, mining):
    models, loss_func = make_models(**({"miner": miners.BatchHardMiner()} if mining == "own" else {}))
    mining_funcs = {
        "tuple_miner": {"tuple_miner": miners.TripletMarginMiner(0.2)},
        "subset_batch_miner": {"subset_batch_miner": miners.HDCMiner(0.5)},
    }.get(mining, {})
    if mining == "subset_batch_miner":  # it chooses samples rather than tuples
        mining_funcs = {"subset_batch_miner": FirstHalf()}
    iterations = 3 * ITERATIONS if mining == "subset_batch_miner" else ITERATIONS  # smaller batches
    trainer = trainers.MetricLossOnly(
        models,
        adam(models),
        loss_funcs={"metric_loss": loss_func},
        mining_funcs=mining_funcs,
        **common(emoji, iterations),
    )
    assert_improves(trainer, models, emoji)
    assert loss_func.calls == iterations


class FirstHalf(torch.nn.Module):
    """A subset batch miner: the classes of the first half of the batch."""

    def forward(self, embeddings, labels):
        assert isinstance(embeddings, torch.Tensor)
        assert embeddings.shape == (BATCH, 8)
        return torch.arange(BATCH // 2)


@pytest.mark.pml("trainers", "TrainWithClassifier")
def test_train_with_classifier(emoji):
    models, loss_func = make_models()
    models["classifier"] = torch.nn.Linear(8, CLASSES)
    trainer = trainers.TrainWithClassifier(
        models,
        adam(models),
        loss_funcs={"metric_loss": loss_func, "classifier_loss": torch.nn.CrossEntropyLoss()},
        mining_funcs={"tuple_miner": miners.MultiSimilarityMiner()},
        **common(emoji),
    )
    weights = models["classifier"].weight.clone()
    assert_improves(trainer, models, emoji)
    assert not torch.equal(weights, models["classifier"].weight)


@pytest.mark.pml("trainers", "TwoStreamMetricLoss")
@pytest.mark.parametrize("tuple_miner", [None, miners.TripletMarginMiner(0.3)], ids=["all", "mined"])
def test_two_stream_metric_loss(emoji, tuple_miner):
    models, loss_func = make_models()
    trainer = trainers.TwoStreamMetricLoss(
        models,
        adam(models),
        loss_funcs={"metric_loss": loss_func},
        mining_funcs={"tuple_miner": tuple_miner} if tuple_miner else {},
        **common(Pairs()),
    )
    assert_improves(trainer, models, emoji)
    assert loss_func.terms["distill"] > 0


@pytest.mark.pml("trainers", "CascadedEmbeddings")
def test_cascaded_embeddings_cuts_columns_which_s2sd_names(emoji):
    models, loss_func = make_models()
    trainer = trainers.CascadedEmbeddings(
        embedding_sizes=[4, 4],
        models=models,
        optimizers=adam(models),
        loss_funcs={"metric_loss_0": loss_func, "metric_loss_1": losses.TripletMarginLoss()},
        **common(emoji),
    )
    with pytest.raises(TypeError, match="must be the S2SDEmbeddings that an S2SDEmbedder returns"):
        trainer.train(num_epochs=1)


@pytest.mark.pml("trainers", "DeepAdversarialMetricLearning")
def test_deep_adversarial_metric_learning(emoji):
    torch.manual_seed(0)
    np.random.seed(0)
    trunk = torch.nn.Sequential(SmallResNet(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    embedder = S2SDEmbedder(128, 8, (16, 32))
    loss_func = S2SDLoss(losses.TripletMarginLoss(), embedder, distill_weight=1.0)
    models = {"trunk": trunk, "embedder": embedder, "generator": torch.nn.Linear(3 * 128, 128)}
    trainer = trainers.DeepAdversarialMetricLearning(
        models=models,
        optimizers=adam(models),
        loss_funcs={
            "metric_loss": loss_func,
            "synth_loss": S2SDLoss(losses.TripletMarginLoss(), embedder, distill_weight=1.0),
            "g_adv_loss": losses.TripletMarginLoss(),
        },
        g_triplets_per_anchor=2,
        **common(emoji, 3 * ITERATIONS),
    )
    assert_improves(trainer, models, emoji)


@pytest.mark.parametrize(
    ("cls", "dataset", "options"),
    [
        pytest.param(cls, dataset, options, id=cls.__name__, marks=pytest.mark.pml("testers", cls.__name__))
        for cls, dataset, options in [
            (testers.GlobalEmbeddingSpaceTester, SomeEmoji, {}),
            (testers.GlobalTwoStreamEmbeddingSpaceTester, Pairs, {}),
            (testers.WithSameParentLabelTester, WithParents, {"label_hierarchy_level": 0}),
        ]
    ],
)
def test_testers(cls, dataset, options):
    models, _ = make_models()
    plain = {"trunk": models["trunk"], "embedder": models["embedder"].deploy()}
    found, expected = {}, {}
    for accuracies, tested in ((found, models), (expected, plain)):
        for model in tested.values():
            model.eval()
        tester = make_tester(cls, **options)
        accuracies.update(tester.test({"all": dataset()}, 0, tested["trunk"], tested["embedder"])["all"])
    assert 0 < found["precision_at_1_level0"] <= 1
    assert found == expected


@pytest.mark.pml("testers", "GlobalTwoStreamEmbeddingSpaceTester")
def test_two_stream_tester_takes_an_embedder_in_training_mode(emoji):
    """PML's two-stream tester does not call eval(); the embeddings are the base space's all the same."""
    models, _ = make_models()
    models["trunk"].eval()
    tester = make_tester(testers.GlobalTwoStreamEmbeddingSpaceTester)
    training = tester.get_all_embeddings(Pairs(), models["trunk"], models["embedder"].train(), None)[0]
    evaluating = tester.get_all_embeddings(Pairs(), models["trunk"], models["embedder"].eval(), None)[0]
    torch.testing.assert_close(training, evaluating)


@pytest.mark.pml("trainers", "MetricLossOnly")
def test_logging_presets_record_the_terms_and_restore_the_call_count(emoji, tmp_path):
    pytest.importorskip("record_keeper")
    record_keeper, _, _ = logging_presets.get_record_keeper(str(tmp_path / "csv"), str(tmp_path / "board"))
    hooks = logging_presets.get_hook_container(record_keeper, primary_metric="precision_at_1", log_freq=1)
    models, loss_func = make_models()
    tester = make_tester(end_of_testing_hook=hooks.end_of_testing_hook)
    folder = str(tmp_path / "models")
    optimizers = adam(models)
    trainer = trainers.MetricLossOnly(
        models,
        optimizers,
        loss_funcs={"metric_loss": loss_func},
        end_of_iteration_hook=hooks.end_of_iteration_hook,
        end_of_epoch_hook=hooks.end_of_epoch_hook(tester, {"val": emoji}, folder),
        **common(emoji),
    )
    assert_improves(trainer, models, emoji)

    total = hooks.get_loss_history(("metric_loss",))["metric_loss"]
    assert len(total) == ITERATIONS
    recorded = record_keeper.query(
        "SELECT base, aux, distill, feature FROM metric_loss_S2SDLoss_terms", return_dict=True
    )
    parts = {name: np.array(values) for name, values in recorded.items()}
    sums = 0.5 * (parts["base"] + parts["aux"]) + parts["distill"] + parts["feature"]
    np.testing.assert_allclose(sums, total, rtol=1e-4)
    assert np.all(parts["feature"][:5] == 0)
    assert np.all(parts["feature"][5:] > 0)

    again, fresh_loss = make_models()
    restored = trainers.MetricLossOnly(again, adam(again), loss_funcs={"metric_loss": fresh_loss}, **common(emoji))
    assert hooks.load_latest_saved_models(restored, folder, device=torch.device("cpu")) == 2
    assert fresh_loss.calls == ITERATIONS
    assert torch.equal(again["embedder"].head.weight, models["embedder"].head.weight)
