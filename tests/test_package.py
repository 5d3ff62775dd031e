"""What is installed: the library alone, typed; and the README's first example runs."""

import code
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
    assert modules == expected | {"pml_s2sd/py.typed", "pml_s2sd/report.html"}
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("METADATA"))).decode()
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    found = {re.match(r"Requires-Dist: ([\w-]+)", line).group(1) for line in required}
    assert found == {"torch", "pytorch-metric-learning", "numpy", "faiss-cpu"}


def test_the_readmes_python_examples_run_when_pasted(capsys):
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert examples
    console = code.InteractiveConsole()
    for line in "\n".join(examples).splitlines():  # line by line, as Python's prompt takes them
        console.push(line)
    console.push("")
    assert "Error" not in capsys.readouterr().err
    assert console.locals["loss"].item() > 0


def test_the_readme_is_under_200_lines():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200
