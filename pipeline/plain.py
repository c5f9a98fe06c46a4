"""Make external text (from catalogues, servers, files, receipts) safe to print."""

from __future__ import annotations

import unicodedata

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})  # control, format (bidi, zero width), surrogates ...


def plain(text: str, *, lines: bool = False) -> str:
    r"""Return the text with control and invisible characters written as escapes, like \x1b.

    Line breaks and tabs are kept if `lines` is true.

    >>> print(plain("a\x1b[31mb\nc"))
    a\x1b[31mb\nc
    """
    if text.isascii() and text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(
        _escaped(char) if unicodedata.category(char) in _HIDDEN and char not in kept else char for char in text
    )


LOADING = "loading libraries and weights"  # an activity that takes seconds, in planning and in each worker


def counted(number: int, thing: str) -> str:
    """Format a number with its noun.

    >>> counted(1, "unit"), counted(2500, "unit")
    ('1 unit', '2,500 units')
    """
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
