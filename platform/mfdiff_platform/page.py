"""A page of HTML that stands alone: style and pictures are inside."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --quiet: #66707f; --rule: #d8dde5;
  --page: #fff; --accent: #1f5a96; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8ebf0; --quiet: #9aa4b2; --rule: #3a4250; --page: #14181f; --accent: #7db4ea; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 62rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p.quiet, figcaption { color: var(--quiet); font-size: .88rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--rule); }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; color: var(--quiet); font-size: .85rem; }
tr.best td { font-weight: 650; color: var(--accent); }
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
        f"<body>{''.join(sections)}</body></html>"
    )


def figure(png: bytes, caption: str) -> str:
    """A picture inside the page, with its caption."""
    data = base64.b64encode(png).decode()
    return (
        f"<figure><img alt='{escape(caption)}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
