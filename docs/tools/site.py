"""A hook of MkDocs: pages beside docs/ belong to the site, and what GitHub's Markdown allows is made plain for MkDocs.

Links in the pages are those of the repository, so that they work there too.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
# Pages that stand beside what they are about, and where the site has them.
BESIDE = {
    "brokers/README.md": "beside/brokers.md",
    "data/README.md": "beside/data.md",
    "models/README.md": "beside/models.md",
    "CHANGELOG.md": "beside/changelog.md",
    "CONTRIBUTING.md": "beside/contributing.md",
    "SECURITY.md": "beside/security.md",
}
_LINK = re.compile(r"\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")
_ITEM = re.compile(r" *(?:[-*]|\d+\.) ")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that stand beside docs/."""
    for source, page in BESIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return the text of a page as MkDocs reads it."""
    beside = {page: source for source, page in BESIDE.items()}
    source = Path(beside.get(page.file.src_uri, f"docs/{page.file.src_uri}"))
    return _space_lists(_LINK.sub(lambda found: _link(found, source, page.file.src_uri), markdown))


def _link(found: re.Match[str], source: Path, page: str) -> str:
    """Return a link as the site has it; a file that is no page of it stays as its name."""
    text, path, anchor = found.group(1), found.group(2), found.group(3) or ""
    if "://" in path:
        return found.group(0)
    target = Path(os.path.normpath(source.parent / path)).as_posix()
    if target in BESIDE:
        to = BESIDE[target]
    elif target.startswith("docs/"):
        to = target.removeprefix("docs/")
    else:
        return text
    return f"[{text}]({Path(os.path.relpath(to, Path(page).parent)).as_posix()}{anchor})"


def _space_lists(markdown: str) -> str:
    """Return the text with an empty line before each list, and what belongs to a numbered step four spaces in."""
    lines: list[str] = []
    fenced = listed = False
    shift: str | None = ""  # None: a step has begun, and its first line further in decides
    for line in markdown.split("\n"):
        if not fenced and _ITEM.match(line) and lines and lines[-1].strip() and not listed:
            lines.append("")
        if not line.startswith(" ") and line.strip():
            listed = not fenced and _ITEM.match(line) is not None
            shift = None if listed and line[0].isdigit() else ""
        elif shift is None and line.strip():
            shift = " " if re.match(r" {3}(?! )", line) else ""
        fenced ^= line.lstrip().startswith("```")
        lines.append(f"{shift or ''}{line}" if line.startswith("   ") else line)
    return "\n".join(lines)
