"""Text for a terminal: safe to show, measured as wide as a terminal shows it, cut to a width, lined up in tables."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Collection, Sequence

_READABLE_COLUMN = 8
"""A table whose columns would be narrower shows each row as a block of lines."""
_MARKS = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
# What moves the cursor, hides text or turns it around. The joiners stay: Persian, Hindi and emoji need them.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def width() -> int | None:
    """Columns of the terminal that standard output goes to, or the value of the variable COLUMNS; None: neither."""
    setting = os.environ.get("COLUMNS", "")
    if setting.isdecimal() and int(setting) > 0:
        return int(setting)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError):  # a file or a pipe; a stream without a file
        return None


def safe(text: str) -> str:
    """``text`` in one line, with control characters, line breaks and bidi marks written as escapes."""
    return _UNSAFE.sub(lambda match: _MARKS.get(match[0]) or _escape(ord(match[0])), text)


def safe_json(text: str) -> str:
    r"""JSON ``text`` with the characters that :func:`safe` escapes written as ``\uXXXX``: the same JSON."""
    return _UNSAFE.sub(lambda match: "".join(f"\\u{unit:04x}" for unit in _utf16(match[0])), text)


def columns(text: str) -> int:
    """How many columns a terminal takes for ``text``: two for a wide East Asian character, none for a mark."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def cut(text: str, most: int) -> str:
    """``text`` in at most ``most`` columns; a cut text ends with an ellipsis."""
    if columns(text) <= most:
        return text
    shown, room = [], most - 1
    for character in text:
        room -= _columns(character)
        if room < 0:
            break
        shown.append(character)
    return "".join(shown).rstrip() + "…" if most > 0 else ""


def table(
    names: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[int] = (), most: int | None = None
) -> list[str]:
    """Lines of a table with a heading, not wider than ``most`` columns (None: as wide as its cells).

    ``right``: positions of the columns that are aligned at the right. The widest columns are cut first. If the columns
    would become too narrow, each row is a block of lines, one line for each column.
    """
    safe_names = [safe(name) for name in names]
    safe_rows = [[safe(cell) for cell in row] for row in rows]
    widths = [max(map(columns, cells)) for cells in zip(safe_names, *safe_rows, strict=True)]
    gaps = 2 * (len(widths) - 1)
    if most is not None and sum(widths) + gaps > most:
        narrowest = sum(min(wide, _READABLE_COLUMN) for wide in widths)
        if narrowest + gaps > most:
            return _blocks(safe_names, safe_rows, most)
        widths = _shrunk(widths, most - gaps)
    return [
        "  ".join(
            _padded(cut(cell, wide), wide, right=n in right)
            for n, (cell, wide) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [safe_names, ["-" * wide for wide in widths], *safe_rows]
    ]


def _blocks(names: Sequence[str], rows: Sequence[Sequence[str]], most: int) -> list[str]:
    label = max(map(columns, names), default=0)
    lines = [] if rows else [cut("(no rows)", most)]
    for number, row in enumerate(rows, start=1):
        lines.append(cut(f"-- row {number} ".ljust(min(most, 40), "-"), most))
        lines += [cut(f"{_padded(name, label)}  {cell}".rstrip(), most) for name, cell in zip(names, row, strict=True)]
    return lines


def _shrunk(widths: Sequence[int], room: int) -> list[int]:
    """``widths`` with the largest made equal, so that they add up to ``room`` or a little less."""
    most = max(widths)
    while sum(min(wide, most) for wide in widths) > room:
        most -= 1
    spare = room - sum(min(wide, most) for wide in widths)
    shrunk = []
    for wide in widths:
        more = wide > most and spare > 0
        spare -= more
        shrunk.append(min(wide, most) + more)
    return shrunk


def _padded(text: str, wide: int, *, right: bool = False) -> str:
    blanks = " " * (wide - columns(text))
    return blanks + text if right else text + blanks


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _utf16(character: str) -> list[int]:
    code = ord(character) - 0x10000
    return [ord(character)] if code < 0 else [0xD800 + (code >> 10), 0xDC00 + (code & 0x3FF)]
