"""The paper's cells: which there are, their settings, and what is said of a wrong file."""

import pytest
from paper.config import CONFIGS, load_config
from paper.write_configs import RECALL_AT_1, TITLES, VARIANTS, cells

FILES = sorted(CONFIGS.glob("*.toml"))
README = CONFIGS.parent / "README.md"


def test_the_files_are_those_that_the_script_writes():
    assert {file.name: file.read_text() for file in FILES} == cells()


def test_every_cell_has_a_file():
    loaded = {file.stem: load_config(file) for file in FILES}
    for (dataset, objective), figures in RECALL_AT_1.items():
        for variant, figure in zip(VARIANTS, figures, strict=True):
            for d, expected in ((128, figure), (512, None)):
                config = loaded.pop(f"{dataset}_{objective}_{variant}_{d}")
                assert (config.dataset, config.objective["name"], config.variant) == (dataset, objective, variant)
                assert (config.trunk, config.embedding_size, config.paper_recall_at_1) == ("resnet50", d, expected)
    assert {config.trunk for config in loaded.values()} == {"googlenet"}


def test_the_readme_has_the_papers_figures_and_says_that_none_was_measured():
    text = README.read_text()
    assert "**None of the figures below was measured by us.**" in text
    rows = [[field.strip() for field in line.strip("|").split("|")] for line in text.splitlines() if ", " in line]
    short = {"cub200": "CUB200", "cars196": "CARS196", "sop": "SOP"}
    for (dataset, objective), figures in RECALL_AT_1.items():
        assert [f"{short[dataset]}, {TITLES[objective]}", *(f"{figure:.2f}" for figure in figures)] in rows


def test_the_papers_settings():
    for config in map(load_config, FILES):
        assert (config.epochs, config.batch_size, config.samples_per_class) == (150, 112, 2)
        assert (config.learning_rate, config.weight_decay, config.side, config.resize) == (1e-5, 4e-4, 224, 256)
        objective = dict(config.objective)
        name = objective.pop("name")
        p = {"cub200": 0.4, "cars196": 0.35, "sop": 0.15}[config.dataset]
        margin = {"margin": 0.2, "beta_learning_rate": 5e-4, "cutoff": 0.5}
        assert (
            objective
            == {
                "margin": {**margin, "beta": 1.2},
                "rmargin": {**margin, "beta": 0.6, "p": p},
                "multisimilarity": {"alpha": 2, "beta": 40, "base": 0.5, "epsilon": 0.1},
            }[name]
        )
        gamma_f = 5 if config.dataset == "sop" else 50
        features = {"feature_weight": gamma_f, "feature_delay": 1000} if "f" in config.variant else {}
        assert config.s2sd == (
            {} if config.variant == "baseline" else {"distill_weight": 50, "temperature": 1, **features}
        )


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("epochs", "epoch", r"unknown settings \['epoch'\], missing ones \['epochs'\]; expected dataset, variant"),
        ('"cub200"', '"cub"', r"dataset must be one of cub200, cars196, sop, got 'cub'"),
        ("= 112", "= 111", "batch_size must be a multiple of samples_per_class, got 111 and 2"),
        ("= 112", "= ", "is not TOML"),
    ],
)
def test_a_wrong_file_is_told(before, after, told, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text((CONFIGS / "cub200_margin_msdf_128.toml").read_text().replace(before, after))
    with pytest.raises(ValueError, match=f"mine.toml.*{told}"):
        load_config(path)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no configuration .*mine.toml; those of the paper are in .*configs"):
        load_config(tmp_path / "mine.toml")
