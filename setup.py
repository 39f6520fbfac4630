"""Makes the long description for the package index: the README with absolute links. All else is in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup

PROJECT = "https://github.com/tokenprune/tokenprune"
PICTURES = "https://raw.githubusercontent.com/tokenprune/tokenprune/main"


def absolute(text: str) -> str:
    """The README with links and pictures that lead to the project's page instead of to files beside it."""

    def link(match: re.Match[str]) -> str:
        picture, words, target = match["picture"], match["words"], match["target"]
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        return f"{picture}[{words}]({PICTURES if picture else f'{PROJECT}/blob/main'}/{target})"

    return re.sub(r"(?P<picture>!?)\[(?P<words>[^\]]*)\]\((?P<target>[^)\s]+)\)", link, text)


setup(
    long_description=absolute((Path(__file__).parent / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
