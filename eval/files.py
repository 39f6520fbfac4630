"""Files that commands write: checks before any work, CSV, JSON and tables in Markdown."""

from __future__ import annotations

import contextlib
import csv
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CommandError

if TYPE_CHECKING:
    from rich.console import Console

#: As the file of `--json`: standard output.
STDOUT = Path("-")


def check_file(path: Path | None, option: str, suffixes: Sequence[str] = ()) -> None:
    """Check that a file can be written, and make the folders above it that are missing.

    A file that exists keeps its content, one that does not is not made.

    Args:
        path: the file; None (the option is not given) and `STDOUT` pass.
        option: the option that names it, for the message.
        suffixes: accepted endings, `.png` for example; empty: any.

    Raises:
        CommandError: it is a folder, has another suffix, or cannot be written.
    """
    if path is None or path == STDOUT:
        return
    with _refused(f"{option} {path}"):
        if path.is_dir():
            raise CommandError(f"{option} {path} is a folder; name a file in it")
        if suffixes and path.suffix.lower() not in suffixes:
            has = f"ends in {path.suffix}" if path.suffix else "has no suffix"
            raise CommandError(f"{option} {path} {has}; accepted: {', '.join(suffixes)}")
        _make_folder(path.parent, f"{option} {path}")
        _try_to_write(path)


def check_folder(path: Path, option: str, files: Sequence[str] = ()) -> None:
    """Check that files can be written into a folder, and make it and the folders above it where they are missing.

    Args:
        path: the folder.
        option: the option that names it, for the message.
        files: names of files that will be written into it.

    Raises:
        CommandError: it, or something above it, is a file, one of the files is a folder, or it cannot be written.
    """
    with _refused(f"{option} {path}"):
        _make_folder(path, f"{option} {path}")
        for name in files or (".tokenprune",):
            if (path / name).is_dir():
                raise CommandError(f"{option} {path}: {path / name} is a folder; a file of that name is to be written")
            _try_to_write(path / name)


def check_different(**given: Path | None) -> None:
    """Check that no two options name the same file.

    Args:
        **given: files by option, without the dashes.

    Raises:
        CommandError: naming the two options and the file.
    """
    seen: dict[Path, str] = {}
    for option, path in given.items():
        if path is not None:
            other = seen.setdefault(path if path == STDOUT else path.resolve(), option)
            if other != option:
                raise CommandError(f"--{other} and --{option} name the same file, {path}")


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    """Turns what the operating system says against writing into an error of the command."""
    try:
        yield
    except OSError as error:
        raise CommandError(f"{what} cannot be written: {error.strerror}") from error


def _make_folder(path: Path, what: str) -> None:
    file = next((each for each in (path, *path.parents) if each.exists() and not each.is_dir()), None)
    if file is not None:
        raise CommandError(f"{what}: {file} is a file, not a folder")
    path.mkdir(parents=True, exist_ok=True)


def _try_to_write(path: Path) -> None:
    """Open a file at its end, or one without a name beside it if it is not there. Access rights alone say nothing of a
    disk that is read-only."""
    try:
        path.stat()
    except FileNotFoundError:
        tempfile.TemporaryFile(dir=path.parent).close()
    else:
        path.open("ab").close()


def picture_suffixes() -> tuple[str, ...]:
    """Endings of pictures that matplotlib writes on this machine, `.png` first."""
    from matplotlib.figure import Figure
    from PIL import features

    needs_more = {"pgf": True, "webp": not features.check("webp"), "avif": not features.check("avif")}  # pgf: LaTeX
    kinds = [kind for kind in Figure().canvas.get_supported_filetypes() if not needs_more.get(kind, False)]
    return tuple(f".{kind}" for kind in sorted(kinds, key=lambda kind: kind != "png"))


def console_beside(json_file: Path | None, console: Console) -> Console:
    """The console for a command's tables: standard error if its JSON goes to standard output, else as it is."""
    from rich.console import Console

    return Console(stderr=True) if json_file == STDOUT else console


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as CSV. A column for every key that any row has; missing values are empty."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, content: Any) -> None:
    """A JSON file with an indent of one; folders that are missing are made. `STDOUT` is standard output."""
    text = json.dumps(content, indent=1) + "\n"
    if path == STDOUT:
        sys.stdout.write(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def read_json(path: Path, missing: str) -> Any:
    """What is in a JSON file.

    Args:
        path: of the file.
        missing: what is said if there is none.

    Raises:
        CommandError: there is no such file, or it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CommandError(missing) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} is no JSON: {error}") from None


def markdown_table(heads: Sequence[str], align: str, rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table.

    Args:
        heads: titles of the columns; may be empty.
        align: per column `l` (left) or `r` (right).
        rows: cells of each row.
    """
    return [
        f"|{'|'.join(f' {head} ' if head else ' ' for head in heads)}|",
        f"|{'|'.join({'l': '---', 'r': '--:'}[side] for side in align)}|",
        *(f"| {' | '.join(cells)} |" for cells in rows),
    ]


def write_section(page: Path, name: str, title: str, content: str) -> None:
    """Write content between two marks of a Markdown page. If they are missing, a section with them is added at its end.

    Args:
        page: the page.
        name: the marks are `<!-- name: start -->` and `<!-- name: end -->`.
        title: of a section that is added.
        content: lines of Markdown.
    """
    start, end = f"<!-- {name}: start -->", f"<!-- {name}: end -->"
    text = page.read_text()
    if start not in text:
        text = f"{text.rstrip()}\n\n## {title}\n\n{start}\n{end}\n"
    before, _, rest = text.partition(start)
    page.write_text(f"{before}{start}\n{content}{end}{rest.partition(end)[2]}")
