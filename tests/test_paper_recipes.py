"""The paper's recipes: every cell's dry run, trunks, optimizer, resuming, options. They need torchvision."""

import dataclasses
import json
import math

import pytest
import torch

pytest.importorskip("torchvision", reason="torchvision is not in this environment; make test-recipes runs these tests")

from paper import splits, training
from paper.building import build
from paper.config import CONFIGS, load_config
from paper.generated import write_small_dataset
from paper.run_folder import RunFolder, describe
from paper.train import compare, dry, main, parse_arguments
from paper.transforms import make_transform
from paper.trunks import NETWORKS, Trunk
from PIL import Image
from pytorch_metric_learning import losses, miners
from results import METRICS
from torchvision import models

from pml_s2sd import S2SDEmbedder, S2SDLoss
from pml_s2sd.miners import RhoDistanceWeightedMiner

FILES = sorted(CONFIGS.glob("*.toml"))
CPU = torch.device("cpu")
QUICK = CONFIGS / "cub200_multisimilarity_msdf_googlenet_512.toml"


def dry_run(file, folder, *options):
    """The figures of the one epoch, and the run's folder."""
    main([str(file), "--dry-run", "--workers", "0", "--device", "cpu", "--runs", str(folder), *options])
    run = folder / "dry" / file.stem / "seed0"
    (figures,) = json.loads((run / "metrics.json").read_text())
    return figures, run


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_dry_run(file, tmp_path, capsys):
    config = load_config(file)
    figures, run = dry_run(file, tmp_path)
    terms = {"base", "aux", "distill", "feature"} if config.s2sd else set()
    assert figures.keys() == {"loss", *METRICS} | terms
    assert all(math.isfinite(figure) for figure in figures.values())
    assert all(0 <= figures[name] <= 1 for name in METRICS)
    weights = torch.load(run / "weights.pt", weights_only=True)
    assert weights["1.head.weight"].shape == (config.embedding_size, NETWORKS[config.trunk].channels)
    assert not any("aux" in name for name in weights)
    paper = "not known" if config.paper_recall_at_1 is None else f"{config.paper_recall_at_1:.2f}"
    assert f"| the paper               | {paper}" in capsys.readouterr().out
    (run / "weights.pt").unlink()  # 100 MB


def test_a_runs_folder_holds_what_repeats_it(tmp_path):
    _, run = dry_run(QUICK, tmp_path)
    made_with = json.loads((run / "run.json").read_text())
    assert made_with["config"] == json.loads(json.dumps(dataclasses.asdict(dry(load_config(QUICK)))))
    assert made_with["numerics"]["seed"] == 0
    assert made_with["arguments"]["config"] == str(QUICK)
    assert made_with["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {"commit", "machine"} <= made_with.keys()
    assert (run.parent / "recall.md").read_text().startswith("| Recall@1 ")
    assert sorted(path.name for path in run.iterdir()) == ["metrics.json", "run.json", "weights.pt"]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_trunk_is_torchvisions_network_up_to_its_feature_maps(name):
    torch.manual_seed(1)
    full = NETWORKS[name].make(weights=None, **NETWORKS[name].options).eval()
    torch.manual_seed(1)
    trunk = Trunk(name, pretrained=False)
    images = torch.randn(2, 3, 64, 64)
    maps = trunk.eval()(images)
    assert maps.shape == (2, trunk.out_channels, 2, 2)
    assert torch.equal(full.fc(maps.mean(dim=(2, 3))), full.fc(full.avgpool(maps).flatten(1)))
    assert torch.allclose(full.fc(maps.mean(dim=(2, 3))), full(images), atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_batch_normalisation_is_frozen_in_training_its_scales_are_not(name):
    trunk = Trunk(name, pretrained=False).train()
    before = {key: buffer.clone() for key, buffer in trunk.named_buffers()}
    images = torch.randn(2, 3, 64, 64)
    maps = trunk(images)
    assert all(torch.equal(buffer, before[key]) for key, buffer in trunk.named_buffers())
    assert torch.equal(maps, trunk.eval()(images))
    maps.sum().backward()
    assert all(parameter.grad is not None for parameter in trunk.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_pretrained_weights_are_torchvisions_file(name, tmp_path, monkeypatch):
    """Put where torchvision keeps what it downloaded."""
    network = NETWORKS[name]
    options = {"aux_logits": True, "init_weights": False} if name == "googlenet" else {}
    full = network.make(weights=None, **options)
    file = tmp_path / "hub" / "checkpoints" / network.weights.url.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True)
    torch.save(full.state_dict(), file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    trunk = Trunk(name, pretrained=True)
    own, theirs = list(trunk.parameters()), dict(full.named_parameters())
    assert torch.equal(own[0], next(iter(theirs.values())))
    assert len(own) == len([key for key in theirs if not key.startswith(("fc.", "aux"))])


def test_images_are_normalised_as_the_weights_were_trained():
    white = Image.new("RGB", (300, 280), (255, 255, 255))
    for trunk, file in (("resnet50", "sop_margin_msd_128"), ("googlenet", QUICK.stem)):
        config = load_config(CONFIGS / f"{file}.toml")
        preset = NETWORKS[trunk].weights.transforms()
        for train in (True, False):
            image = make_transform(config, train)(white)
            assert image.shape == (3, 224, 224)
            assert image.dtype == torch.float32
            mean, std = torch.tensor(preset.mean), torch.tensor(preset.std)
            # torchvision's GoogLeNet turns ImageNet's normalisation into its own inside (transform_input)
            expected = (1 - mean) / std if trunk == "resnet50" else torch.ones(3)
            assert torch.allclose(image.amax(dim=(1, 2)), expected, atol=1e-5)
            assert torch.allclose(image.amin(dim=(1, 2)), expected, atol=1e-5)


def test_test_images_are_resized_and_cut_from_the_centre():
    config = load_config(CONFIGS / "cub200_margin_msdf_128.toml")
    picture = Image.new("RGB", (512, 256))
    picture.paste((255, 255, 255), (256, 0, 512, 256))
    image = make_transform(config, train=False)(picture)[0]
    assert (image[:, :112] == image.min()).all()
    assert (image[:, 112:] == image.max()).all()


def test_every_spaces_beta_learns_at_its_own_rate():
    config = load_config(CONFIGS / "cub200_rmargin_msdfa_128.toml")
    parts = build(config, classes=100, pretrained=False, device=CPU)
    network, betas = parts.optimizer.param_groups
    assert (network["lr"], betas["lr"]) == (1e-5, 5e-4)
    assert network["weight_decay"] == betas["weight_decay"] == 4e-4
    assert [tuple(beta.shape) for beta in betas["params"]] == [(100,)] * 5
    assert all((beta == 0.6).all() for beta in betas["params"])
    assert len({beta.data_ptr() for beta in betas["params"]}) == 5
    assert {id(p) for p in network["params"]} == {id(p) for p in parts.model.parameters()}

    embedder, loss_func = parts.model[1], parts.loss_func
    assert isinstance(embedder, S2SDEmbedder) and embedder.aggregate_pooling
    assert embedder.aux_sizes == (512, 1024, 1536, 2048)
    assert isinstance(loss_func, S2SDLoss)
    assert (loss_func.distill_weight, loss_func.feature_weight, loss_func.feature_delay) == (50, 50, 1000)
    for miner in (loss_func.miner, *loss_func.aux_miners.values()):
        assert (miner.p, miner.cutoff) == (0.4, 0.5)
    assert parts.miner is None


def test_the_baselines_are_pmls_parts_alone():
    parts = build(load_config(CONFIGS / "sop_margin_baseline_512.toml"), 11318, False, CPU)
    assert isinstance(parts.loss_func, losses.MarginLoss)
    assert isinstance(parts.miner, RhoDistanceWeightedMiner) and parts.miner.p == 0
    assert (parts.loss_func.margin, tuple(parts.loss_func.beta.shape)) == (0.2, (11318,))
    parts = build(load_config(CONFIGS / "sop_multisimilarity_baseline_128.toml"), 11318, False, CPU)
    assert isinstance(parts.loss_func, losses.MultiSimilarityLoss)
    assert isinstance(parts.miner, miners.MultiSimilarityMiner) and parts.miner.epsilon == 0.1
    assert len(parts.optimizer.param_groups) == 1


def options_of(*arguments):
    return parse_arguments([str(QUICK), "--dry-run", "--workers", "0", "--device", "cpu", *arguments])


def run(config, options, seed, folder):
    with training.data_folder(config, options) as data:
        sets = training.load_splits(config, options, data)
        folder.open(describe(config, options, seed))
        return training.train(config, options, seed, folder, *sets)


def weights_of(folder):
    return torch.load(folder.weights, weights_only=True)


def test_a_run_that_was_killed_goes_on_to_exactly_the_same_figures(tmp_path, monkeypatch):
    config = dataclasses.replace(dry(load_config(QUICK)), epochs=3, learning_rate=1e-3)
    whole, cut = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "cut")
    expected = run(config, options_of(), 0, whole)
    assert len({epoch["loss"] for epoch in expected}) == 3

    def killed_in_the_third_epoch(*arguments):
        if len(cut.epochs()) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    evaluate = training.evaluate
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "evaluate", killed_in_the_third_epoch)
        run(config, options_of(), 0, cut)
    assert cut.epochs() == expected[:2]
    assert not cut.finished()
    assert run(config, options_of(), 0, cut) == expected
    for name, tensor in weights_of(whole).items():
        assert torch.equal(weights_of(cut)[name], tensor)
    assert not list(tmp_path.rglob("*.checkpoint*"))
    other = run(config, options_of(), 1, RunFolder(tmp_path / "other"))
    assert other[0]["loss"] != expected[0]["loss"]


def test_a_folder_of_other_settings_is_not_gone_on_with(tmp_path):
    config = dry(load_config(QUICK))
    folder = RunFolder(tmp_path / "run")
    first = run(config, options_of(), 0, folder)
    assert run(config, options_of("--workers", "1"), 0, folder) == first  # finished: not run again
    with pytest.raises(ValueError, match=r"run was made with precision = float32, this run has bfloat16; give the"):
        run(config, options_of("--precision", "bfloat16"), 0, folder)
    with pytest.raises(ValueError, match=r"was made with epochs = 1, this run has 2"):
        run(dataclasses.replace(config, epochs=2), options_of(), 0, folder)


@pytest.fixture
def small_cub200(tmp_path, monkeypatch):
    """A folder like the user's, smaller; and ImageNet weights, as if they had been downloaded before."""
    write_small_dataset("cub200", tmp_path / "data")
    small = splits.SOURCES["cub200"]._replace(train=splits.Size(8, 24), test=splits.Size(4, 12))
    monkeypatch.setitem(splits.SOURCES, "cub200", small)
    weights = tmp_path / "hub" / "checkpoints" / NETWORKS["googlenet"].weights.url.rsplit("/", 1)[1]
    weights.parent.mkdir(parents=True)
    torch.save(models.googlenet(weights=None, aux_logits=True, init_weights=False).state_dict(), weights)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    small_config = tmp_path / "small.toml"
    text = QUICK.read_text().replace("epochs = 150", "epochs = 2").replace("batch_size = 112", "batch_size = 8")
    small_config.write_text(text.replace("side = 224", "side = 64").replace("resize = 256", "resize = 72"))
    return [str(small_config), "--data", str(tmp_path / "data"), "--runs", str(tmp_path / "runs"), "--device", "cpu"]


def test_seeds_on_a_data_set_by_two_workers(small_cub200, tmp_path, capsys):
    main([*small_cub200, "--workers", "2", "--seeds", "2"])
    table = capsys.readouterr().out
    runs = {seed: json.loads((tmp_path / f"runs/small/seed{seed}/metrics.json").read_text()) for seed in (0, 1)}
    assert [len(epochs) for epochs in runs.values()] == [2, 2]
    assert table.strip() == compare(runs, None) == (tmp_path / "runs/small/recall.md").read_text().strip()
    assert "mean ± std over 2 seeds" in table
    main([*small_cub200, "--workers", "2", "--seeds", "2"])
    again = capsys.readouterr()
    assert again.out == table
    assert "seed 0" not in again.err  # no progress bar: nothing was trained again


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (
            lambda data: data.rename(data.with_name("elsewhere")),
            "no file .*images.txt; --data is the folder that holds",
        ),
        (lambda data: next(data.rglob("*.jpg")).unlink(), "1 of the .* images .* are missing"),
        (lambda data: write_small_dataset("sop", data) or (data / "CUB_200_2011").rename(data / "CUB"), "no file"),
    ],
)
def test_a_broken_data_set_ends_the_script_with_a_sentence(break_it, told, small_cub200, tmp_path):
    break_it(tmp_path / "data")
    with pytest.raises(SystemExit, match=rf"^train.py: CUB200-2011: {told}"):
        main(small_cub200)
    assert not (tmp_path / "runs").exists()


def test_what_is_wrong_with_arguments_is_told(tmp_path, capsys):
    for arguments, told in (
        ([str(QUICK)], "--data is needed: the folder that holds the unpacked archive; or try --dry-run"),
        ([str(QUICK), "--dry-run", "--seeds", "0"], "--seeds must be at least 1, got 0"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert told in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"^train.py: no configuration .*mine.toml"):
        main([str(tmp_path / "mine.toml"), "--dry-run"])


def test_the_table_has_mean_and_deviation_beside_the_papers_figure():
    runs = {
        s: [{"precision_at_1": r} for r in recalls] for s, recalls in enumerate([(0.6, 0.65, 0.64), (0.6, 0.7, 0.7)])
    }
    assert compare(runs, 67.58).splitlines() == [
        "| Recall@1                | best epoch   | last epoch   |",
        "| ----------------------- | ------------ | ------------ |",
        "| seed 0                  | 65.00        | 64.00        |",
        "| seed 1                  | 70.00        | 70.00        |",
        "| mean ± std over 2 seeds | 67.50 ± 3.54 | 67.00 ± 4.24 |",
        "| the paper               | 67.58        |              |",
    ]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_and_either_layout_train_alike(precision, tmp_path):
    expected, _ = dry_run(QUICK, tmp_path / "float32")
    found, run = dry_run(QUICK, tmp_path / precision, "--precision", precision, "--no-channels-last")
    assert found["loss"] == pytest.approx(expected["loss"], rel=0.05)
    assert torch.load(run / "weights.pt", weights_only=True)["1.head.weight"].dtype == torch.float32


def test_tensorboard_has_the_figures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    figures, run = dry_run(QUICK, tmp_path, "--logger", "tensorboard")
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == figures.keys()
    for name, figure in figures.items():
        (event,) = events.Scalars(name)
        assert (event.step, event.value) == (1, pytest.approx(figure, rel=1e-6))


def test_weights_and_biases_has_the_figures(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    figures, run = dry_run(QUICK, tmp_path, "--logger", "wandb")
    (recorded,) = run.rglob("*.wandb")
    content = recorded.read_bytes()
    assert all(name.encode() in content for name in figures)


def test_a_compiled_trunk_computes_the_same(tmp_path, monkeypatch):
    """As one graph; the default backend takes minutes on a CPU to make code of it."""
    compile_with = torch.nn.Module.compile
    monkeypatch.setattr(Trunk, "compile", lambda trunk: compile_with(trunk, backend="eager", fullgraph=True))
    expected, _ = dry_run(QUICK, tmp_path / "eager")
    found, run = dry_run(QUICK, tmp_path / "compiled", "--compile")
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert not any("_orig_mod" in name for name in torch.load(run / "weights.pt", weights_only=True))
