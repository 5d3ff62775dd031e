"""What stands around the code: workflows, hooks, the source distribution, the check of a release."""

import importlib.util
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text()


def commands(workflow):
    return re.findall(r"^ *- run: (.+)$", workflow.read_text(), re.MULTILINE)


def loaded(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


release_check = loaded(ROOT / ".ci" / "release_check.py")


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_only_calls_targets_of_the_makefile(workflow):
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    called = [re.fullmatch(r"make ([a-z-]+)", command).group(1) for command in commands(workflow)]
    assert called
    assert set(called) <= targets
    assert len(re.findall(r"\brun:", workflow.read_text())) == len(called)


def test_the_workflow_calls_the_readmes_two_commands_on_every_python():
    workflow = ROOT / ".github" / "workflows" / "test.yml"
    readme = (ROOT / "README.md").read_text().split("## Two commands")[1]
    two = re.findall(r"^(make \w+)", re.findall(r"```\n(.*?)```", readme, flags=re.DOTALL)[0], re.MULTILINE)
    assert set(two) == {"make demo", "make test"}
    assert set(two) | {"make lint", "make test-matrix"} == set(commands(workflow))
    assert re.findall(r'"(3\.\d+)"', workflow.read_text().split("matrix:")[1].split("steps:")[0]) == [
        "3.10", "3.11", "3.12", "3.13",
    ]  # fmt: skip
    assert "python_requires = >=3.10" in (ROOT / "setup.cfg").read_text()


def test_the_hooks_are_what_make_lint_runs():
    hooks = re.findall(r"entry: \.venv/bin/(.+)", (ROOT / ".pre-commit-config.yaml").read_text())
    lint = MAKEFILE.split("\nlint:")[1].split("\n\n")[0]
    linted = [re.sub(r"( --check)?( \.)?$", "", command) for command in re.findall(r"bin/(.+)", lint)]
    assert hooks == linted == ["ruff format", "ruff check", "mypy"]


def test_every_python_has_one_version_of_each_package():
    """Where a package has a newer version for newer Pythons, the two lines split them at the same one."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    markers = {}
    for line in lines:
        name, _, marker = re.fullmatch(r"([\w.-]+)==([\w.+]+)(?:; (.+))?", line).groups()
        markers.setdefault(name.lower(), []).append(marker)
    split = ['python_version >= "3.11"', 'python_version < "3.11"']
    assert [name for name, found in markers.items() if found not in ([None], split)] == []
    assert markers["numpy"] == split


@pytest.mark.slow
def test_tests_run_from_the_source_distribution(tmp_path):
    """It holds every file of the repository, and its tests import the library that it holds."""
    build = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    if (ROOT / ".git").exists():
        tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        there = [name for name in tracked.splitlines() if (ROOT / name).exists()]
        assert [name for name in there if not (unpacked / name).is_file()] == []
    assert list(unpacked.rglob("*.pyc")) == []
    chosen = ["tests/test_variants.py", "tests/test_paper_configs.py", "tests/test_run_folder.py"]
    options = ["-q", "-p", "no:cacheprovider", "-m", "not slow"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *chosen], cwd=unpacked, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-2000:]


@pytest.mark.parametrize(
    ("tag", "heading", "error"),
    [
        ("v1.2.0", "1.2.0 (2026-11-27)", None),
        ("v1.2.1", "1.2.0 (2026-11-27)", r"the tag is v1\.2\.1, the version 1\.2\.0; tag v1\.2\.0"),
        ("v1.2.0", "1.2.0 (unreleased)", r'CHANGELOG.md begins with "## 1\.2\.0 \(unreleased\)"'),
        ("v1.2.0", "1.1.0 (2026-11-27)", r'expected "## 1\.2\.0 \(YYYY-MM-DD\)"'),
    ],
)
def test_a_tag_names_the_version_and_the_changelogs_heading(tag, heading, error):
    arguments = tag, "1.2.0", f"# Changelog\n\n## {heading}\n\n- Something.\n\n## 1.0.0 (2026-01-01)\n"
    if error is None:
        release_check.check_tag(*arguments)
    else:
        with pytest.raises(SystemExit, match=error):
            release_check.check_tag(*arguments)


@pytest.mark.parametrize(
    ("printed", "good"),
    [
        ("Recall@1 of 8 numbers: 0.700 baseline, 0.800 S2SD\n", True),
        ("Recall@1 of 8 numbers: 0.800 baseline, 0.700 S2SD\n", False),
        ("a warning\nRecall@1 of 8 numbers: 0.700 baseline, 0.800 S2SD\n", False),
        ("", False),
    ],
)
def test_what_readmes_example_prints_is_looked_at(printed, good):
    if good:
        release_check.check_printed(printed)
    else:
        with pytest.raises(SystemExit, match="README's example printed"):
            release_check.check_printed(printed)


def test_a_release_is_built_into_an_empty_folder(tmp_path):
    release_check.check_empty(tmp_path / "dist")
    (tmp_path / "pml_s2sd-0.0.1.tar.gz").write_text("")
    with pytest.raises(SystemExit, match="is not empty"):
        release_check.check_empty(tmp_path)


def test_the_version_is_that_of_the_package():
    import pml_s2sd

    assert release_check.version_of(ROOT) == pml_s2sd.__version__


def test_a_command_that_fails_ends_the_check():
    with pytest.raises(SystemExit, match="this failed with 3"):
        release_check.run(sys.executable, "-c", "raise SystemExit(3)")
