"""What the site adds to its pages: the README as the first, and the reference of all keys."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from dccl_flower.simulations.key_reference import reference

README = Path(__file__).parents[1] / "README.md"
# A site holds its pages alone: of a link to another file of the repository the text stays.
OUTSIDE_DOCS = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")
OUTSIDE_ROOT = re.compile(r"\[([^\]]+)\]\((?!https?:|#|docs/)[^)]+\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README, with links as they are from the folder of the pages."""
    text = OUTSIDE_ROOT.sub(r"\1", README.read_text(encoding="utf-8"))
    files.append(File.generated(config, "index.md", content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Add the reference to the page on the configuration."""
    if page.file.src_uri == "configuration.md":
        markdown += "\n" + reference()
    return OUTSIDE_DOCS.sub(r"\1", markdown)
