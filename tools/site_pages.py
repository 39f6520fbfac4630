"""Hooks of mkdocs: pages that are files at the root of the repository, and links that lead out of `docs/`."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
#: Pages of the site by the files that they are made of.
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
_LINK = re.compile(r"(?P<words>!?\[[^\]]*\])\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def links_of_site(text: str, folder: str, repository: str) -> str:
    """A page's text with links to what is not a page of the site made links to the repository.

    Args:
        text: in Markdown.
        folder: of the file, from the root of the repository: `docs`, `docs/bench/llava`, or empty.
        repository: its address.
    """

    def link(match: re.Match[str]) -> str:
        target = match["target"]
        if re.match(r"[a-z]+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        anchor = match["anchor"] or ""
        if path in PAGES or path.startswith("docs/"):
            page = PAGES.get(path, path.removeprefix("docs/"))
            here = folder.removeprefix("docs").strip("/")
            return f"{match['words']}({posixpath.relpath(page, here or '.')}{anchor})"
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        if not (ROOT / path).exists():
            raise ValueError(f"{folder or 'the root'} links to {target}, which is not there")
        return f"{match['words']}({repository.rstrip('/')}/{kind}/main/{path}{anchor})"

    return _LINK.sub(link, text)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of `PAGES`."""
    for source, page in PAGES.items():
        text = links_of_site((ROOT / source).read_text(encoding="utf-8"), "", config.repo_url)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Make links that lead out of `docs/` links to the repository."""
    if page.file.src_uri in PAGES.values() or page.file.src_uri.endswith(".ipynb"):
        return markdown
    return links_of_site(markdown, posixpath.join("docs", posixpath.dirname(page.file.src_uri)).rstrip("/"), config.repo_url)
