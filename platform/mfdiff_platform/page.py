"""A self-contained HTML page: one file, no links to others, light and dark."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from mfdiff_core.files import write_bytes

NOTICE = "Research use only; not a medical device."

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --quiet: #66707f; --rule: #d8dde5;
  --page: #fff; --warn: #8a4b00; --warn-page: #fff4e0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8ebf0; --quiet: #9aa4b2; --rule: #3a4250; --page: #14181f; --warn: #ffc46b;
    --warn-page: #2e2412; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 66rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
p.quiet, figcaption { color: var(--quiet); font-size: .88rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem 1.2rem .3rem 0; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; color: var(--quiet); font-size: .88rem; }
ul.warnings { background: var(--warn-page); color: var(--warn); border-radius: 4px;
  padding: .8rem 1rem .8rem 2rem; }
img { max-width: 100%; background: #fff; border-radius: 4px; } figure { margin: 1rem 0; }
"""


def write_page(path: Path, title: str, subtitle: str, sections: Sequence[str]) -> None:
    """Write a page of HTML ``sections`` atomically."""
    text = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style><body><h1>{escape(title)}</h1>"
        f"<p class=quiet>{escape(subtitle)} · {NOTICE}</p>{''.join(sections)}</body></html>\n"
    )
    write_bytes(path, text.encode())


def heading(text: str) -> str:
    """A section's heading."""
    return f"<h2>{escape(text)}</h2>"


def facts(rows: Mapping[str, object]) -> str:
    """A table of names and values."""
    cells = (f"<tr><th>{escape(k)}<td>{escape(str(v))}</tr>" for k, v in rows.items())
    return f"<table>{''.join(cells)}</table>"


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
