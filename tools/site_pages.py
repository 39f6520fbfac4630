"""Hooks of mkdocs: pages that are files at the root of the repository, and links that lead out of `docs/`."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
#: Pages of the site by the files that they are made of.
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
_LINK = re.compile(r"(?P<words>!?\[[^\]]*\])\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def in_tree(path: str) -> Path | None:
    """A file or folder by its path from the root of the repository; None if there is none.

    A source distribution has `patches/` and `eval/` in `tokenprune/` only.
    """
    return next((found for found in (ROOT / path, ROOT / "tokenprune" / path) if found.exists()), None)


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
        found = in_tree(path)
        if found is None:
            raise ValueError(f"{folder or 'the root'} links to {target}, which is not there")
        kind = "tree" if found.is_dir() else "blob"
        return f"{match['words']}({repository.rstrip('/')}/{kind}/main/{path}{anchor})"

    return _LINK.sub(link, text)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of `PAGES`."""
    from mkdocs.structure.files import File  # tests use this module without mkdocs

    for source, page in PAGES.items():
        text = links_of_site((ROOT / source).read_text(encoding="utf-8"), "", config.extra["repository"])
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Make links that lead out of `docs/` links to the repository."""
    path = page.file.src_uri
    if path in PAGES.values() or path.endswith(".ipynb"):
        return markdown
    folder = posixpath.join("docs", posixpath.dirname(path)).rstrip("/")
    return links_of_site(markdown, folder, config.extra["repository"])


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Take out what a notebook's page would load from another host: a script for diagrams, of which there are none."""
    return re.sub(r"<script[^>]*>(?:(?!</script>).)*mermaid(?:(?!</script>).)*</script>", "", output, flags=re.S)


#: What a browser fetches by itself from another host.
_FETCHED = re.compile(
    r'<(?:script|img|iframe|source|video)\b[^>]*\bsrc="?(?:https?:)?//[^\s">]*'
    r'|<link\b(?![^>]*\bcanonical)[^>]*\bhref="?(?:https?:)?//[^\s">]*'
)


def on_post_build(config: Any) -> None:
    """Fail if a page of the site loads something from another host."""
    from mkdocs.exceptions import PluginError

    for page in sorted(Path(config.site_dir).rglob("*.html")):
        if found := _FETCHED.search(page.read_text(encoding="utf-8")):
            raise PluginError(f"{page.relative_to(config.site_dir)} loads from another host: {found[0]}")
