"""What `mkdocs build` does beside its own: pages that lie elsewhere, the notebook as a page, equations as MathML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe
import nbformat
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parent.parent
ELSEWHERE = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "notebook.md": "examples/notebook.ipynb",
}
"""Pages of the site, and the files that they are made of."""


def equation(source: str, *_: Any, **__: Any) -> str:
    """A ```math fence, which code hosts show as an equation, as MathML: browsers draw it without any script."""
    return f'<div class="equation">{convert(source.strip(), display="block")}</div>'


class Examples(griffe.Extension):
    """Docstrings say Example: of one, griffe knows Examples: alone."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    fence = {"name": "math", "class": "equation", "format": equation}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for page, source in ELSEWHERE.items():
        if source.endswith(".ipynb"):
            notebook = nbformat.read(ROOT / source, as_version=4)
            text, resources = MarkdownExporter().from_notebook_node(notebook, {"unique_key": Path(page).stem})
            for name, picture in resources["outputs"].items():
                files.append(File.generated(config, name, content=picture))
        else:
            text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=re.sub(r"\]\((\.\./)?docs/", "](", text)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """On a code host a link leads to the file, here to the page that is made of it."""
    for page, source in ELSEWHERE.items():
        markdown = markdown.replace(f"](../{source})", f"]({page})")
    return markdown
