"""What is cited ships: documents, their sections and steps, decision records, laws, and links between pages."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CODE = tuple(folder for name in ("src", "tests", "benchmarks", "tools", "examples", "findings") if (folder := ROOT / name).is_dir())
SOURCES = sorted(path for folder in CODE for suffix in ("py", "sh", "toml") for path in folder.rglob(f"*.{suffix}"))
TEXTS = {path: path.read_text("utf-8") for path in SOURCES if path != Path(__file__)}
# Cards are templates: their links are those of the directory that they are written to.
PAGES = {
    page: page.read_text("utf-8")
    for page in sorted({*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *(page for folder in CODE for page in folder.rglob("*.md"))})
    if page.parent.name != "page"
}

DOCUMENT = re.compile(r"(?<![\w./-])((?:[\w-]+/)*[\w-]+\.md)\b")
SECTIONS = re.compile(r"(docs/[\w/-]+\.md),?\s+sections?\s+(\d+(?:(?:,|\s+and|\s+to)\s+\d+)*)")
STEPS = re.compile(r"docs/method\.md section 5, steps? (\d+(?:(?:,|\s+and)\s+\d+)*)")
LAWS = re.compile(r"(?:docs/architecture\.md, laws?|[Ll]aws) (\d+(?:(?:,|\s+and|-)\s*\d+)*)")
RECORD = re.compile(r"\bADRs? (\d+)\b")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# Notes and numbered tasks that are not part of the repository.
PRIVATE = re.compile(r"(?<!\w)(?:shared/(?:design|seeds)|house-(?:plan|style)\.md)|\b(?:[Ss]ource: |of )issues? \d+\b")
ELSEWHERE = {"census.md"}  # written by a build
BARE = re.compile(r"(?<![\w/])(?:method|interfaces|conventions|targets|architecture|formats|results|glossary)\.md")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _listed(text: str) -> set[int]:
    """The numbers of a numbered list."""
    return {int(number) for number in re.findall(r"^(\d+)\. ", text, re.MULTILINE)}


def _between(page: str, start: str) -> str:
    """The part of a page below the heading that begins so."""
    return PAGES[DOCS / page].split(f"\n## {start}")[1].split("\n## ")[0]


def _sections(page: Path) -> set[int]:
    return {int(number) for number in re.findall(r"^## (\d+)\. ", page.read_text("utf-8"), re.MULTILINE)}


def _anchors(page: Path) -> set[str]:
    """Anchors that a Markdown viewer gives to the headings of a page."""
    titles = re.findall(r"^#{1,6} (.+)$", CODE_BLOCK.sub("", PAGES[page]), re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()).strip()) for title in titles}


def test_documents_and_sections_cited_in_code_exist() -> None:
    steps = _listed(_between("method.md", "5. "))
    absent = []
    for path, text in TEXTS.items():
        absent += [(_name(path), name) for name in DOCUMENT.findall(text) if name.startswith("docs/") and not (ROOT / name).is_file()]
        for page, sections in SECTIONS.findall(text):
            absent += [(_name(path), f"{page} section {n}") for n in _numbers(sections) if n not in _sections(ROOT / page)]
        absent += [(_name(path), f"step {n}") for cited in STEPS.findall(text) for n in _numbers(cited) if n not in steps]
    assert absent == []


def test_code_cites_documents_by_their_path() -> None:
    assert [_name(path) for path, text in TEXTS.items() if BARE.search(text)] == []


def test_decision_records_that_are_cited_exist_and_the_index_names_all() -> None:
    records = {int(path.name[:4]): path.name for path in (DOCS / "adr").glob("[0-9]*.md")}
    assert len(records) == len(list((DOCS / "adr").glob("[0-9]*.md")))  # no two of one number
    assert [name for number, name in records.items() if not (DOCS / "adr" / name).read_text("utf-8").startswith(f"# {number}. ")] == []
    cited = {int(n) for text in (*TEXTS.values(), *PAGES.values()) for n in RECORD.findall(text)}
    assert cited
    assert cited <= set(records)
    assert [name for name in records.values() if name not in PAGES[DOCS / "adr" / "README.md"]] == []


def test_laws_that_are_cited_exist() -> None:
    cited = {n for text in TEXTS.values() for match in LAWS.findall(text) for n in _numbers(match)}
    assert cited
    assert cited <= _listed(_between("architecture.md", "Laws"))


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page, text in PAGES.items():
        for link in LINK.findall(CODE_BLOCK.sub("", text)):
            name, _, anchor = link.partition("#")
            there = (page.parent / name).resolve() if name else page
            if not re.match(r"[a-z]+:", link) and (not there.exists() or (anchor and there in PAGES and anchor not in _anchors(there))):
                broken.append((_name(page), link))
    assert broken == []


def test_pages_of_the_site_link_to_none_that_it_has_not() -> None:
    """The site's generator takes `docs` alone; elsewhere a path in code style is what a page names."""
    pages = {page: CODE_BLOCK.sub("", text) for page, text in PAGES.items() if page.is_relative_to(DOCS)}
    links = {(page, link.partition("#")[0]) for page, text in pages.items() for link in LINK.findall(text) if ":" not in link}
    assert [(_name(page), name) for page, name in sorted(links) if not (page.parent / name).resolve().is_relative_to(DOCS)] == []


def test_documents_named_in_a_page_ship() -> None:
    absent = []
    for page, text in PAGES.items():
        for name in DOCUMENT.findall(re.sub(r"\]\([^)]*\)|https?://\S+", "", text)):
            if Path(name).name not in ELSEWHERE and not any((folder / name).is_file() for folder in (ROOT, DOCS, page.parent)):
                absent.append((_name(page), name))
    assert absent == []


def test_nothing_cites_what_only_its_makers_have() -> None:
    assert [_name(path) for path, text in (TEXTS | PAGES).items() if PRIVATE.search(text)] == []


def _module_exists(name: str) -> bool:
    """Whether a dotted name is a module of quad, or something that a module of quad defines."""
    path = ROOT / "src" / name.replace(".", "/")
    if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
        return True
    owner = path.parent.with_suffix(".py")
    return owner.is_file() and re.search(rf"^(?:class|def) {path.name}\b", owner.read_text("utf-8"), re.MULTILINE) is not None


def test_every_page_is_on_the_site_and_every_module_of_its_reference_exists() -> None:
    site = tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))["project"]
    listed = set(re.findall(r"[\w/-]+\.md", str(site["nav"])))
    pages = {page.relative_to(DOCS).as_posix(): text for page, text in PAGES.items() if page.is_relative_to(DOCS)}
    assert {page for page in pages if not re.match(r"adr/\d", page)} == listed
    shown = [name for text in pages.values() for name in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)]
    assert shown
    assert [name for name in shown if not _module_exists(name)] == []


def test_every_word_of_the_glossary_has_a_module_that_exists() -> None:
    rows = re.findall(r"^\| (?!word)([^|-][^|]*) \|.*\| `?(quad\.[\w.]+|[^|`]*)`? \|$", PAGES[DOCS / "glossary.md"], re.MULTILINE)
    assert len(rows) > 40
    assert [(word, module) for word, module in rows if not _module_exists(module)] == []


def test_modules_named_in_pages_exist() -> None:
    absent = []
    for page, text in PAGES.items():
        # Records of decisions are never rewritten: they name what was there.
        if page.parent.name != "adr" and page.name != "CHANGELOG.md":
            absent += [(_name(page), name) for name in re.findall(r"`(quad(?:\.[a-z_]\w*)+)`", text) if not _module_exists(name)]
    assert absent == []


def test_files_named_in_the_architecture_exist() -> None:
    files = re.findall(r"`([\w/]+/\w+\.py)`", PAGES[DOCS / "architecture.md"])
    assert len(files) > 30
    assert [name for name in files if not any((ROOT / folder / name).is_file() for folder in (".", "src/quad"))] == []


def test_the_readme_stays_a_door() -> None:
    assert len(PAGES[ROOT / "README.md"].splitlines()) <= 110


def test_every_test_that_a_page_names_exists() -> None:
    named = {name for page in PAGES.values() for name in re.findall(r"`(tests/[\w/]+\.py::test_\w+)`", page)}
    assert len(named) > 15
    lost = [
        name
        for name in sorted(named)
        if not re.search(rf"^ *def {name.partition('::')[2]}\(", _text(name.partition("::")[0]), re.MULTILINE)
    ]
    assert not lost


def _text(name: str) -> str:
    path = ROOT / name
    return path.read_text("utf-8") if path.is_file() else ""
