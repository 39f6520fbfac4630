"""Places in the documentation for tables that are made."""

import re


def place(marker: str) -> re.Pattern[str]:
    """From `<!-- marker -->` to the `<!-- end -->` that follows."""
    return re.compile(rf"(<!-- {re.escape(marker)} -->\n).*?(<!-- end -->)", re.S)


def put(text: str, marker: str, table: str) -> str:
    """The text with the table in its place, of which there is one."""
    filled, places = place(marker).subn(lambda m: f"{m[1]}\n{table.strip()}\n\n{m[2]}", text)
    assert places == 1, f"{places} places for {marker!r}"
    return filled
