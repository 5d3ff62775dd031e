"""pytest plugin: the table of docs/compatibility.md, from the results of the tests marked ``pml(module, name)``.

    python -m pytest tests --compatibility docs/compatibility.md

A class of PML's without a test, and without a reason in `NOTES`, makes the command fail.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from pathlib import Path

import pytest
from pml_cases import NOTES, exported

from pml_s2sd.whole_file import whole_file

HEADER = ("| class | with S2SD | tests passed | note |", "| --- | --- | --- | --- |")
MODULES = ("losses", "miners", "distances", "reducers", "regularizers", "trainers", "testers")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--compatibility", type=Path, help="write the table of PML's classes to this file")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "pml(module, name): tests a class that pytorch_metric_learning exports")
    if config.getoption("--compatibility"):
        config.pluginmanager.register(Table(config.getoption("--compatibility")), "compatibility-table")


class Table:
    """Collects the outcomes of the marked tests and writes the table at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.classes_of: dict[str, list[tuple[str, str]]] = {}
        self.outcomes: dict[tuple[str, str], list[str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            self.classes_of[item.nodeid] = [mark.args for mark in item.iter_markers("pml")]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome == "failed":
            for key in self.classes_of.get(report.nodeid, ()):
                self.outcomes.setdefault(key, []).append(report.outcome)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        rows = [(module, name) for module in MODULES for name in exported(pml_module(module))]
        untested = [f"{module}.{name}" for module, name in rows if not self.outcomes.get((module, name))]
        untested = [name for name in untested if name not in NOTES]
        if untested:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            raise pytest.UsageError(f"no test is marked pml(...) for {', '.join(untested)}")
        text = self.render()
        with whole_file(self.path, "w") as file:
            file.write(text)

    def render(self) -> str:
        lines = [
            "# What works with PML's classes",
            "",
            f"Every class that pytorch-metric-learning {version('pytorch-metric-learning')} exports. Written by "
            "`make compatibility` from",
            "the results of the tests; do not edit. `make test-matrix` runs them on PML 2.3.0, 2.6.0 and 2.9.0.",
        ]
        for module in MODULES:
            lines += [
                "",
                f"## {module}",
                "",
                "| class | with S2SD | tests passed | note |",
                "| --- | --- | --- | --- |",
            ]
            lines += [self.row(module, name) for name in exported(pml_module(module))]
        return "\n".join(lines) + "\n"

    def row(self, module: str, name: str) -> str:
        outcomes = self.outcomes.get((module, name), [])
        works, note = NOTES.get(f"{module}.{name}", ("yes", ""))
        passed = outcomes.count("passed")
        if passed < len(outcomes):
            works = "**fails**"
        return f"| {name} | {works} | {f'{passed} of {len(outcomes)}' if outcomes else '–'} | {note} |"


def pml_module(name: str) -> object:
    return importlib.import_module(f"pytorch_metric_learning.{name}")
