"""Text from elsewhere in HTML: markup is escaped, and control and direction characters are shown instead of obeyed."""

from __future__ import annotations

import html

from pipeline.plain import plain


def escape(text: str) -> str:
    """The text for an HTML element or a quoted attribute."""
    return html.escape(plain(text, lines=True))
