"""The tests that need a device: those that pytest's marker `gpu` is on."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

ROOT = Path(__file__).parents[1]


def files_with_the_marker() -> list[str]:
    return sorted(str(file) for file in (ROOT / "tests").glob("test_*.py") if "pytest.mark.gpu" in file.read_text())


def device_tests(device: torch.device, small: bool) -> dict[str, Any]:
    """How many passed, which failed, which were skipped and why: without a card, all are."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-m", "gpu", "-p", "no:cacheprovider", "--junitxml", str(report)]
        run = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *files_with_the_marker()],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if run.returncode not in (0, 1):  # 1: tests failed
            raise RuntimeError(f"pytest ended with {run.returncode}: {run.stdout[-1500:]}{run.stderr[-1500:]}")
        return counts(report)


def counts(report: Path) -> dict[str, Any]:
    """Of pytest's report in JUnit's XML."""
    passed, failed, skipped = 0, [], {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').removeprefix('tests.')}::{case.get('name')}"
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        elif (reason := case.find("skipped")) is not None:
            skipped[name] = reason.get("message", "")
        else:
            passed += 1
    return {"passed": passed, "failed": len(failed), "failures": failed, "skipped": skipped}
