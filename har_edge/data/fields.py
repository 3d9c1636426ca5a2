"""Explain a key that a TOML file may not have, by the keys that it may have, the similar ones first."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

import msgspec

_UNKNOWN = re.compile(r"Object contains unknown field `(?P<key>[^`]*)`(?: - at `\$\.?(?P<path>[^`]*)`)?")


def explain_unknown(error: Exception, tables: Mapping[str, type[msgspec.Struct]]) -> str:
    """Return the text of an error; for an unknown key, which table has it and what that may hold.

    `tables` maps the path of each table, without numbers and names in brackets ("" is the top), to what it may hold.
    """
    found = _UNKNOWN.fullmatch(str(error))
    if found is None:
        return str(error)
    path = re.sub(r"\[[^]]*\]", "", found["path"] or "")
    table = tables.get(path)
    where = f"[{path}]" if path else "the top of the file"
    if table is None:
        return f"unknown key `{found['key']}` in {where}"
    known = table.__struct_fields__
    close = difflib.get_close_matches(found["key"], known, n=3)
    return (
        f"unknown key `{found['key']}` in {where}; {'did you mean' if close else 'expected'} {_listed(close or known)}"
    )


def _listed(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:-1]) + (" or " if len(names) > 1 else "") + names[-1]
