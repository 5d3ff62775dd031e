"""What is installed: the library alone, typed; who imports whom; and the README's first example runs."""

import ast
import code
import importlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_wheel_holds_the_library_alone(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run([*command, "--no-build-isolation"], check=True)
    (wheel,) = tmp_path.glob("pml_s2sd-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    modules = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "pml_s2sd").rglob("*.py")}
    assert modules == expected | {"pml_s2sd/py.typed", "pml_s2sd/report/page.html"}
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("METADATA"))).decode()
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    found = {re.match(r"Requires-Dist: ([\w-]+)", line).group(1) for line in required}
    assert found == {"torch", "pytorch-metric-learning", "numpy", "faiss-cpu"}


FIRST_NAMES = {"accuracy", "diagnostics", "evaluate", "neighbours"}
"""Modules that hold nothing but the first name of one in `evaluation`."""


def imported(path):
    """Full names of all that a module imports, also within its functions, and of what it takes from them."""
    package = ["pml_s2sd", *path.relative_to(ROOT / "pml_s2sd").parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def within(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_the_core_imports_neither_evaluation_nor_report():
    core = [path for path in (ROOT / "pml_s2sd").glob("*.py") if path.stem not in FIRST_NAMES]
    core += [ROOT / "pml_s2sd" / "compress" / name for name in ("__init__.py", "_compress.py")]
    assert {"__init__.py", "loss.py", "embedder.py", "miners.py"} <= {path.name for path in core}
    products = {"pml_s2sd.evaluation", "pml_s2sd.report", *(f"pml_s2sd.{name}" for name in FIRST_NAMES)}
    heavy = {"faiss", "matplotlib", "sklearn", "PIL", "onnx", "onnxruntime"}
    found = [(path.name, name) for path in core for name in imported(path) if within(name, products | heavy)]
    assert found == []


@pytest.mark.parametrize(("product", "other"), [("evaluation", "report"), ("report", "evaluation")])
def test_evaluation_and_report_stand_side_by_side(product, other):
    modules = sorted((ROOT / "pml_s2sd" / product).glob("*.py"))
    assert len(modules) > 5
    found = [(path.name, name) for path in modules for name in imported(path) if within(name, {f"pml_s2sd.{other}"})]
    assert found == []


def test_the_first_names_hold_nothing_else():
    for name in FIRST_NAMES:
        tree = ast.parse((ROOT / "pml_s2sd" / f"{name}.py").read_text())
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        first = importlib.import_module(f"pml_s2sd.{name}")
        (source,) = (node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
        home = importlib.import_module(f"pml_s2sd.{source}")
        assert all(getattr(first, exported) is getattr(home, exported) for exported in first.__all__)


def test_the_library_is_imported_without_what_only_evaluation_and_report_need():
    heavy = ["faiss", "matplotlib", "sklearn", "PIL", "torch._dynamo"]
    ask = f"import sys, pml_s2sd; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_readmes_python_examples_run_when_pasted(capsys):
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert examples
    console = code.InteractiveConsole()
    for line in "\n".join(examples).splitlines():  # line by line, as Python's prompt takes them
        console.push(line)
    console.push("")
    printed = capsys.readouterr()
    assert "Error" not in printed.err
    baseline, ours = map(float, re.findall(r"(0\.\d+) (?:baseline|S2SD)", printed.out))
    assert ours > baseline + 0.01


def test_the_readme_is_under_150_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
