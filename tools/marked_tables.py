"""Tables in Markdown pages, each between `<!-- marker -->` and `<!-- end -->`."""

import re


def marked(marker: str) -> re.Pattern[str]:
    """A pattern that matches a marker, its table, and the next `<!-- end -->`."""
    return re.compile(rf"(<!-- {re.escape(marker)} -->\n).*?(<!-- end -->)", re.S)


def put(text: str, marker: str, table: str) -> str:
    """The text with the table after its marker replaced.

    Raises:
        ValueError: the marker is missing, or there is more than one.
    """
    filled, found = marked(marker).subn(lambda m: f"{m[1]}\n{table.strip()}\n\n{m[2]}", text)
    if found != 1:
        raise ValueError(f"marker {marker!r} must be there once, and is there {found} times")
    return filled
