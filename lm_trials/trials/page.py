"""The page of a trial, as Markdown and as one HTML file without a network: both from the same blocks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

WORDS = {"holds": "yes", "does not hold": "no"}  # classes of the verdict's colour; of others: open
CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)  # between as many backquotes on both sides


@dataclass(frozen=True)
class Text:
    """A paragraph; `words` in backquotes are code."""

    text: str


@dataclass(frozen=True)
class Heading:
    """A heading of the second level."""

    text: str


@dataclass(frozen=True)
class Banner:
    """The verdict."""

    word: str
    reason: str


@dataclass(frozen=True)
class Table:
    """A table; in `folded` ones, long lists, the HTML page shows the rows after a click on the caption."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Items:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Commands."""

    text: str


@dataclass(frozen=True)
class Picture:
    """A figure: `<name>.png` beside the Markdown page, the SVG of that name in the HTML page."""

    name: str
    alternative: str


Block = Text | Heading | Banner | Table | Items | Code | Picture


def as_markdown(title: str, blocks: Iterable[Block]) -> str:
    """Return the page as Markdown.

    >>> print(as_markdown("A claim: a < b.", [Table(["run", "p"], [["`a|b`", "0.1"]])]))
    # A claim: a \\< b.
    <BLANKLINE>
    | run | p |
    | --- | ---: |
    | `a\\|b` | 0.1 |
    <BLANKLINE>
    """
    return "\n\n".join([f"# {_plain(title)}", *map(_markdown, blocks)]) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Text(text):
            return _plain(text)
        case Heading(text):
            return f"## {text}"
        case Banner(word, reason):
            return f"**Verdict: {word}.** {_plain(reason)}"
        case Items(items):
            return "\n".join(f"- {_plain(item)}" for item in items)
        case Code(text):
            return f"```bash\n{text}\n```"
        case Picture(name, alternative):
            return f"![{alternative}]({name}.png)"
        case Table(columns, rows, caption, _):
            lines = [columns, ["---", *("---:" for _ in columns[1:])], *([_cell(each) for each in row] for row in rows)]
            table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
            return f"{table}\n\n{_plain(caption)}" if caption else table


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    """Return a text on one line in which only code is Markdown.

    >>> print(_plain("# <b> `a*b` *c*"))
    \\# \\<b> `a*b` \\*c\\*
    """
    special = re.compile(rf"{CODE.pattern}|[\\<*]|&(?=#?\w+;)")
    text = special.sub(lambda found: found[0] if found[1] else f"\\{found[0]}", " ".join(text.split()))
    return re.sub(r"^(\d*)([-+#.)]+( |$)|[>~=])", r"\1\\\2", text)  # of lists, headings, quotes and code


def code(text: str) -> str:
    """Return a text as code of a page.

    >>> code("a"), code("a`b")
    ('`a`', '`` a`b ``')
    """
    longest = max(map(len, re.findall("`+", text)), default=0)
    return f"{'`' * (longest + 1)} {text} {'`' * (longest + 1)}" if longest else f"`{text}`"


def as_html(title: str, blocks: Iterable[Block], pictures: Mapping[str, str]) -> str:
    """Return the page as one HTML file.

    Args:
        pictures: the SVG of each figure by its name.
    """
    body = "\n".join(_html(block, pictures) for block in blocks)
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n<h1>{_inline(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Block, pictures: Mapping[str, str]) -> str:
    match block:
        case Text(text):
            return f"<p>{_inline(text)}</p>"
        case Heading(text):
            return f"<h2>{_inline(text)}</h2>"
        case Banner(word, reason):
            kind = WORDS.get(word, "open")
            return f'<div class="verdict {kind}"><b>Verdict: {escape(word)}</b>{_inline(reason)}</div>'
        case Items(items):
            return "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>"
        case Code(text):
            return f"<pre>{escape(text)}</pre>"
        case Picture(name, alternative):
            return f'<figure role="img" aria-label="{escape(alternative)}">{pictures[name]}</figure>'
        case Table(columns, rows, caption, folded):
            table = _html_table(columns, rows, "" if folded else caption)
            return f"<details><summary>{_inline(caption)}</summary>{table}</details>" if folded else table


def _html_table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    kinds = [_kind(" ".join(row[place] for row in rows)) for place in range(len(columns))]
    head = "".join(f"<th{kind}>{_inline(column)}</th>" for column, kind in zip(columns, kinds, strict=True))
    lines = []
    for row in rows:
        cells = (
            f'<td data-label="{escape(column)}"{kind}>{_inline(cell)}</td>'
            for column, kind, cell in zip(columns, kinds, row, strict=True)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    note = f'\n<p class="note">{_inline(caption)}</p>' if caption else ""
    table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{chr(10).join(lines)}</tbody></table>"
    return f'<div class="table">{table}</div>{note}'


def _kind(cells: str) -> str:
    """Return the class of cells with words, which are set to the left."""
    return ' class="words"' if re.search("[A-Za-z]{3}", cells) else ""


def _inline(text: str) -> str:
    """Return a text as HTML: what is in backquotes as code, intervals on one line.

    >>> _inline("`a<b` & [0, 1]")
    '<code>a&lt;b</code> &amp; <span>[0, 1]</span>'
    """
    text = re.sub(r"\[[-+.,\d\w ]+\]", r"<span>\g<0></span>", escape(text))
    return CODE.sub(r"<code>\2</code>", text)
