"""HTML escaping of external text. Control and direction characters are shown as escapes."""

from __future__ import annotations

import html

from pipeline.plain import plain


def escape(text: str) -> str:
    """Escape text for an HTML element or a quoted attribute."""
    return html.escape(plain(text, lines=True))
