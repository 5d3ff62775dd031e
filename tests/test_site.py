"""`make docs`: built strictly, the site has every page, public module and name, and loads nothing from elsewhere."""

import importlib
import os
import pkgutil
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_package import FIRST_NAMES

import pml_s2sd

ROOT = Path(__file__).parent.parent
WITH_NAMES = ("pml_s2sd", "pml_s2sd.evaluation", "pml_s2sd.report", "pml_s2sd.compress")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages' HTML, by name."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pages = {page.relative_to(folder).as_posix(): page.read_text(encoding="utf-8") for page in folder.rglob("*.html")}
    del pages["404.html"]
    return pages


def public_modules():
    walked = pkgutil.walk_packages(pml_s2sd.__path__, "pml_s2sd.")
    names = [found.name for found in walked if not re.search(r"\._", found.name)]
    return [name for name in names if name.removeprefix("pml_s2sd.") not in FIRST_NAMES]


def test_there_is_a_page_of_each_file_of_docs(site):
    of_files = {page.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for page in ROOT.glob("docs/**/*.md")}
    assert site.keys() == of_files | {"changelog.html", "contributing.html", "notebook.html"}
    assert {
        "index.html",
        "start.html",
        "settings.html",
        "how_it_works.html",
        "faq.html",
        "api/training.html",
    } <= of_files


def test_every_page_is_in_the_navigation(site):
    linked = set(re.findall(r'href="([^"#]+\.html)"[^>]*class="md-nav__link', site["index.html"]))
    linked |= set(re.findall(r'class="md-nav__link[^>]*href="([^"#]+\.html)"', site["index.html"]))
    assert site.keys() - linked == set()


def test_the_reference_has_every_public_module_and_name(site):
    reference = "".join(page for name, page in site.items() if name.startswith("api/"))
    described = set(re.findall(r'id="(pml_s2sd[\w.]*)"', reference))
    assert "pml_s2sd.loss" in (modules := public_modules())
    assert set(modules) - described == set()
    names = {f"{module}.{name}" for module in WITH_NAMES for name in importlib.import_module(module).__all__}
    assert {"pml_s2sd.S2SDLoss", "pml_s2sd.report.RunWriter"} <= names
    assert names - described == set()
    assert "::: " not in re.sub(r"<pre>.*?</pre>", "", reference, flags=re.DOTALL)
    assert "feature distillation starts after this many" in reference  # an argument's text
    assert "&gt;&gt;&gt; " in re.sub(r"</?span[^>]*>", "", reference)  # an example's prompt


def test_equations_are_drawn_by_the_browser_alone(site):
    page = site["how_it_works.html"]
    assert page.count("<math ") == (ROOT / "docs/how_it_works.md").read_text(encoding="utf-8").count("```math")
    assert "\\" not in "".join(
        re.findall(r"<math .*?</math>", page, flags=re.DOTALL)
    )  # a command that was not understood


def test_the_notebook_has_its_pictures(site):
    pictures = re.findall(r'<img[^>]*src="(notebook_[\w.]+)"', site["notebook.html"])
    assert len(pictures) == 2
    assert "Recall@1, S2SD consolidated" in site["notebook.html"]


class Loaded(HTMLParser):
    """What a browser fetches by itself: sources of scripts and pictures, style sheets."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.found += [attrs["src"]] if attrs.get("src") else []
        self.found += [attrs["href"]] if tag == "link" else []


def test_nothing_is_loaded_from_elsewhere(site):
    for name, page in site.items():
        loaded = Loaded()
        loaded.feed(page)
        assert len(loaded.found) > 3
        assert [where for where in loaded.found if re.match(r"(https?:)?//", where)] == [], name
        assert 'class="mermaid"' not in page  # its script is not in the theme
