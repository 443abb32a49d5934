"""Comments, docstrings and pages cite the papers by section (docs/papers/npc.md 4.1); each leads to a heading.

A number alone in parentheses, (4.1), belongs to the one paper that its file cites.
"""

import ast
import io
import re
import tokenize
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest

from support.paths import ROOT

PAPERS = ROOT / "docs" / "papers"
SOURCES = sorted(file for folder in ("clip_itm", "tests", "benchmarks") for file in ROOT.glob(f"{folder}/**/*.py"))
PAGES = sorted(ROOT.glob("docs/**/*.md"))
WRITTEN = {"comparison.md"}  # by commands

NUMBER = r"[1-9]\d?(?:\.\d{1,2})?"
NUMBERS = rf"{NUMBER}(?:(?:, | and | to |-){NUMBER}\b(?!\.\d))*"
CITATION = re.compile(rf"([\w./-]+\.md)[`)]*(?:,? section)? ({NUMBERS})\b")
ALONE = re.compile(rf"\((?=\d+\.)({NUMBERS})\)")
SELF = re.compile(rf"\b[Ss]ections? ({NUMBERS})\b")


def prose(file: Path) -> list[str]:
    """Comments and docstrings of a Python file, or a whole page, with single blanks."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        return [" ".join(text.split())]
    values = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Expr)]
    found = [value.value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, str)]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [(token.start[0], token.string.lstrip("# ")) for token in tokens if token.type == tokenize.COMMENT]
    for _, block in groupby(enumerate(comments), key=lambda entry: entry[1][0] - entry[0]):  # adjacent lines
        found.append(" ".join(comment for _, (_, comment) in block))
    return [" ".join(part.split()) for part in found]


@cache
def headings(page: Path) -> set[str]:
    """The numbers of a page's headings."""
    return set(re.findall(rf"^#+ ({NUMBER})\.? ", page.read_text(encoding="utf-8"), re.M))


def numbers_of(pattern: re.Pattern, parts: list[str]) -> list[str]:
    return [number for part in parts for numbers in pattern.findall(part) for number in re.findall(NUMBER, numbers)]


def citations(parts: list[str], home: Path, paper: Path | None = None) -> list[tuple[Path, str]]:
    """(page, number) of what is cited, with paths that begin at `home`; in a `paper` its own sections, too."""
    found = [(home / path, numbers) for part in parts for path, numbers in CITATION.findall(part)]
    found = [(page, number) for page, numbers in found for number in re.findall(NUMBER, numbers)]
    pages = {paper} if paper else {page for page, _ in found}
    if pages:
        own = pages.pop() if len(pages) == 1 else home / "several papers"
        found += [(own, number) for number in numbers_of(ALONE, parts)]
    if paper:
        found += [(paper, number) for number in numbers_of(SELF, parts)]
    return found


def mistakes(parts: list[str], home: Path, paper: Path | None = None) -> list[str]:
    """Citations that lead nowhere."""
    cited = citations(parts, home, paper)
    return [f"{page.name} {number}" for page, number in cited if not page.is_file() or number not in headings(page)]


def missing_pages(parts: list[str]) -> set[str]:
    """Pages that are named and are not there."""
    named = {path for part in parts for path in re.findall(r"[\w./-]+\.md\b", part)} - WRITTEN
    return {path for path in named if not (ROOT / path).is_file()}


def test_citations_in_code_lead_to_headings():
    texts = {file.relative_to(ROOT).as_posix(): prose(file) for file in SOURCES}
    wrong = {file: found for file, parts in texts.items() if (found := mistakes(parts, ROOT))}
    missing = {file: found for file, parts in texts.items() if (found := missing_pages(parts))}
    assert not wrong | missing


def test_the_code_has_citations():
    """So that the test above reads something."""
    code = [file for file in SOURCES if file.is_relative_to(ROOT / "clip_itm")]
    found = [citation for file in code for citation in citations(prose(file), ROOT)]
    assert len(found) > 80
    assert {page for page, _ in found} == set(PAPERS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_citations_in_pages_lead_to_headings(page):
    assert not mistakes(prose(page), page.parent, page if page.parent == PAPERS else None)


@pytest.mark.parametrize("page", sorted(PAPERS.glob("*.md")), ids=lambda page: page.stem)
def test_papers_are_in_order_and_name_files_that_are_there(page):
    text = page.read_text(encoding="utf-8")
    numbers = [tuple(map(int, number.split("."))) for number in re.findall(rf"^#+ ({NUMBER})\.? ", text, re.M)]
    assert numbers == sorted(set(numbers))
    files = re.findall(r"`((?:clip_itm|recipes|tests)/[^`\s]+)`", text)
    files += [
        f"tests/golden/{name}.npz"
        for line in re.findall(r"^\| (`\w+_.*?) \|", text, re.M)
        for name in re.findall(r"\w+", line)
    ]
    assert len(files) > 5
    for file in files:
        assert all(list(ROOT.glob(pattern)) for pattern in spelled_out(file)), file


def spelled_out(pattern: str) -> list[str]:
    """{a,b} as the shell reads it."""
    braces = re.search(r"\{(.*?)\}", pattern)
    if braces is None:
        return [pattern.rstrip("/")]
    names = braces[1].split(",")
    return [path for name in names for path in spelled_out(pattern[: braces.start()] + name + pattern[braces.end() :])]


@pytest.mark.parametrize(
    ("cited", "wrong"),
    [
        ("docs/papers/npc.md 4.1", []),
        ("docs/papers/npc.md 2.3 to 2.6, 3", []),
        ("docs/papers/crcl.md 6.4-6.10", []),
        ("docs/papers/dive.md 4.7, 4.9 and 11", []),
        ("docs/papers/aahr.md 16, numbers 2, 6, 13", []),
        ("docs/papers/dive.md 5.1; both directions at once (5.7)", []),
        ("docs/papers/npc.md 99", ["npc.md 99"]),
        ("docs/papers/npc.md 2.3 to 2.66, 3.1", ["npc.md 2.66", "npc.md 3.1"]),
        ("docs/papers/crcl.md 6.4-6.90", ["crcl.md 6.90"]),
        ("docs/papers/dive.md 4.7, 4.9 and 41", ["dive.md 41"]),
        ("docs/papers/dive.md, section 61", ["dive.md 61"]),
        ("docs/papers/dive.md 5.1; both directions at once (5.70)", ["dive.md 5.70"]),
        ("docs/papers/npc.md 4.1, docs/papers/dive.md 5.1 (5.7)", ["several papers 5.7"]),
        ("docs/dive.md 4.1", ["dive.md 4.1"]),
        ("npc.md 4.1", ["npc.md 4.1"]),
    ],
)
def test_a_wrong_citation_is_found(tmp_path, cited, wrong):
    """In a docstring, in a comment, and broken over two lines of either."""
    first, _, last = cited.partition(" ")
    for source in (
        f'"""A loss ({cited})."""\n',
        f"x = 1  # a loss ({cited})\n",
        f'def f():\n    """A loss.\n\n    As in {first}\n    {last}.\n    """\n',
        f"# as in {first}\n# {last}\n",
    ):
        (tmp_path / "module.py").write_text(source)
        assert mistakes(prose(tmp_path / "module.py"), ROOT) == wrong


def test_a_page_that_is_missing_is_found():
    assert missing_pages(["as in docs/papers/npc.md, docs/heads.md; writes comparison.md"]) == set()
    assert missing_pages(["as in npc.md and docs/papers/npd.md"]) == {"npc.md", "docs/papers/npd.md"}
