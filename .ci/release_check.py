"""What is released, tried as a user gets it: built, checked, and installed into empty environments.

    python .ci/release_check.py dist                # `make release-check` calls it so
    TAG=v0.1.0 python .ci/release_check.py dist     # the tag has to be that of the version

Builds the source distribution, and the wheel from it, into an empty folder; lets twine check both; installs each into
an environment of its own, with the versions of constraints.txt; and pastes README's first python example there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARGIN = 0.01
"""By how much S2SD has to be above the baseline in README's example."""


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    check_empty(folder)
    if tag := os.environ.get("TAG"):
        check_tag(tag, version_of(ROOT), (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    run(sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT))
    built = sorted(folder.iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *map(str, built))
    for distribution in built:
        started = time.perf_counter()
        printed = run_in_empty_environment(distribution, readme_example())
        check_printed(printed)
        print(f"{distribution.name}: {printed.strip()} ({time.perf_counter() - started:.0f} s)", flush=True)


def check_empty(folder: Path) -> None:
    """A distribution of before would be released with the new ones."""
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"release-check: {folder} is not empty; remove what is in it, it would be released as well")


def version_of(root: Path) -> str:
    return re.findall(r'^__version__ = "(.+)"$', (root / "pml_s2sd" / "__init__.py").read_text(), re.MULTILINE)[0]


def check_tag(tag: str, version: str, changelog: str) -> None:
    """The tag names the version, and the newest heading of the changelog does, with a date."""
    if tag != f"v{version}":
        raise SystemExit(f"release-check: the tag is {tag}, the version {version}; tag v{version}, or set __version__")
    heading = re.findall(r"^## (.+)$", changelog, re.MULTILINE)[0]
    if not re.fullmatch(rf"{re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", heading):
        raise SystemExit(
            f'release-check: CHANGELOG.md begins with "## {heading}"; expected "## {version} (YYYY-MM-DD)", the day of '
            "the release"
        )


def readme_example() -> str:
    """README's first block of python."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)[0]


def run_in_empty_environment(distribution: Path, code: str) -> str:
    """What the code prints where nothing but the distribution, and what it requires, is installed."""
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "venv", f"{folder}/venv")
        python = f"{folder}/venv/bin/python"
        run(python, "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), str(distribution))
        found = run(python, "-c", "import pml_s2sd; print(pml_s2sd.__file__)", folder=folder)
        if not found.startswith(folder):
            raise SystemExit(f"release-check: pml_s2sd was imported from {found.strip()}, not from {distribution.name}")
        return run(python, "-W", "error::UserWarning:pml_s2sd", "-c", code, folder=folder)


def check_printed(printed: str) -> None:
    """The one line that the example prints."""
    values = re.fullmatch(r"Recall@1 of 8 numbers: (0\.\d{3}) baseline, (0\.\d{3}) S2SD\n", printed)
    if values is None or float(values[2]) < float(values[1]) + MARGIN:
        raise SystemExit(
            f"release-check: README's example printed {printed!r}; expected Recall@1 of baseline and of S2SD, "
            f"the latter above by {MARGIN} or more"
        )


def run(*command: str, folder: str | Path = ROOT) -> str:
    """A command's standard output; its error output is shown. PYTHONPATH, which may name this folder, is left out."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stdout}release-check: this failed with {done.returncode}: {' '.join(command)}")
    return done.stdout


if __name__ == "__main__":
    main()
