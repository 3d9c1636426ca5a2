"""Every page of the repository leads where it says: relative links, their anchors and pictures exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import har_edge

ROOT = Path(__file__).parents[1]
PACKAGE = Path(har_edge.__file__).parent
PAGES = sorted(
    path
    for folder in (".", "docs", "docs/*", "brokers", "models", "data", "findings", "examples")
    for path in ROOT.glob(f"{folder}/*.md")
)
FENCED = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)


def prose(path: Path) -> str:
    """Return a page without its blocks of code."""
    return FENCED.sub("", path.read_text(encoding="utf-8"))


def slug(heading: str) -> str:
    """Return the anchor that GitHub and MkDocs give a heading of plain words."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    text = prose(path)
    return {slug(one) for one in re.findall(r"^#+ (.+)$", text, re.MULTILINE)} | set(re.findall(r'id="([^"]+)"', text))


def target(page: Path, link: str) -> Path:
    """Return what a link leads to; modules are those of the package that is tested, which may be installed."""
    path = (page.parent / link).resolve()
    inside = ROOT.resolve() / "har_edge"
    return PACKAGE / path.relative_to(inside) if path.is_relative_to(inside) else path


def test_the_pages_are_found() -> None:
    assert {path.parent.name for path in PAGES} >= {"docs", "tutorial", "how-to", "reference", "explanation", "brokers"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_no_placeholders_and_no_dead_links(page: Path) -> None:
    assert re.findall(r"@[A-Z]+@", page.read_text(encoding="utf-8")) == []
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", prose(page)):
        path, _, anchor = "".join(link).partition("#")
        if "://" in path:
            continue
        to = target(page, path) if path else page
        if not to.exists() or (anchor and anchor not in anchors(to)):
            dead.append("".join(link))
    assert dead == []


def test_no_page_is_lost() -> None:
    """Every page of docs/ can be reached from its index."""
    known, waiting = set(), [ROOT / "docs" / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in known or not page.is_relative_to(ROOT / "docs"):
            continue
        known.add(page)
        links = re.findall(r"\]\(([^)#\s]+\.md)", prose(page))
        waiting += [(page.parent / link).resolve() for link in links if "://" not in link]
    assert sorted(set((ROOT / "docs").resolve().rglob("*.md")) - known) == []


def test_the_site_lists_every_page() -> None:
    listed = re.findall(r"^ +- .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(one for one in listed if not one.startswith("beside/")) == sorted(pages)


STYLED = [page for page in PAGES if page.name not in ("CHANGELOG.md",) and "findings" not in page.parts]


@pytest.mark.parametrize("page", STYLED, ids=lambda page: str(page.relative_to(ROOT)))
def test_sentences_begin_with_their_subject(page: Path) -> None:
    """A sentence that begins with Whoever, What, Where or Of has to be read twice; questions and headings may."""
    lines = [line for line in prose(page).splitlines() if not re.match(r"#|\||    ", line)]
    sentences = [one.strip() for one in re.split(r"(?<=[.!?:])\s+|\n\n|\n(?=[-*] |\d+\. )", "\n".join(lines))]
    found = [one for one in sentences if re.match(r"(?:[-*] |\d+\. )?(Whoever|Whatever|What|Where|Of)\b", one)]
    assert [one for one in found if not one.rstrip().endswith("?")] == []
