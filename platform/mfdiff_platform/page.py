"""A page of HTML that stands alone: style and pictures are inside, light and dark."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from mfdiff_core.files import write_bytes

NOTICE = "Research use only; not a medical device."

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --quiet: #66707f; --rule: #d8dde5;
  --page: #fff; --accent: #1f5a96; --warn: #8a4b00; --warn-page: #fff4e0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8ebf0; --quiet: #9aa4b2; --rule: #3a4250; --page: #14181f; --accent: #7db4ea;
    --warn: #ffc46b; --warn-page: #2e2412; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 64rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p.quiet, figcaption { color: var(--quiet); font-size: .88rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; color: var(--quiet); font-size: .85rem; }
table.facts { width: auto; } table.facts th, table.facts td { text-align: left; }
tr.best td { font-weight: 650; color: var(--accent); }
ul.warnings { background: var(--warn-page); color: var(--warn); border-radius: 4px;
  padding: .8rem 1rem .8rem 2rem; }
img { max-width: 100%; background: #fff; border-radius: 4px; }
.wide { overflow-x: auto; }
figure { margin: 1rem 0; } pre { overflow-x: auto; padding: .8rem 1rem;
  border: 1px solid var(--rule); border-radius: 4px; font-size: .86rem; }
"""


def page(title: str, sections: Sequence[str]) -> str:
    """A self-contained HTML page; ``sections`` are HTML already, ``title`` is not."""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<body>{''.join(sections)}</body></html>\n"
    )


def write_page(path: Path, title: str, subtitle: str, sections: Sequence[str]) -> None:
    """Write a page with its title, a line beneath it and HTML ``sections``, atomically."""
    head = f"<h1>{escape(title)}</h1><p class=quiet>{escape(subtitle)} · {NOTICE}</p>"
    write_bytes(path, page(title, [head, *sections]).encode())


def heading(text: str) -> str:
    """A section's heading."""
    return f"<h2>{escape(text)}</h2>"


def facts(rows: Mapping[str, object]) -> str:
    """A table of names and values."""
    cells = (f"<tr><th>{escape(k)}<td>{escape(str(v))}</tr>" for k, v in rows.items())
    return f"<table class=facts>{''.join(cells)}</table>"


def warnings(lines: Sequence[str]) -> str:
    """Sentences that a reader must not miss; nothing where there are none."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul class=warnings>{items}</ul>" if items else ""


def figure(png: bytes, caption: str) -> str:
    """A picture with its caption, inside the page."""
    data = base64.b64encode(png).decode()
    return (
        f"<figure><img alt='{escape(caption)}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
