"""Builds the site from docs/: `make docs`, or python docs/site/build.py [--out build/site].

The pages are those that are read on disk. Beside them stand CONTRIBUTING.md, CHANGELOG.md and the reference, which is
made from the code. Nothing is fetched, neither by the build nor by its pages; a warning is an error.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# files of the project that are pages of the site, too
BESIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
FENCE = re.compile(r"^ {0,3}(```|~~~)")
ITEM = re.compile(r"^ {0,3}([-*+]|\d+\.) ")


def main(argv: Sequence[str] | None = None) -> int:
    """Assemble, build, look at what was built; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="docs/site/build.py", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="the site's folder, made anew")
    options = parser.parse_args(argv)
    out = options.out.resolve()
    pages = out.with_name(f"{out.name}-pages")
    shutil.rmtree(pages, ignore_errors=True)
    assemble(pages)
    settings = out.with_name(f"{out.name}.yml")
    settings.write_text(yaml.safe_dump(configuration(pages, out), sort_keys=False), encoding="utf-8")
    # its notice about the program's future is no warning of the build
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--clean", "-f", str(settings)]
    status = subprocess.run(command, env=environment, check=False).returncode
    if status:
        return status
    strangers = [f"{page.relative_to(out)}: {address}" for page, address in requests(out)]
    if strangers:
        print("pages that would ask another host:", *strangers, sep="\n  ", file=sys.stderr)
        return 1
    print(f"{sum(1 for _ in out.rglob('*.html'))} pages: {out / 'index.html'}")
    return 0


def assemble(pages: Path) -> None:
    """Everything that the site shows, as Markdown and files below `pages`."""
    # late: it asks the whole package, and adapting pages needs none of it
    import reference

    shutil.copytree(DOCS, pages, ignore=shutil.ignore_patterns("site", "__pycache__"))
    (pages / "assets").mkdir()
    for name in ("iframe-worker.js", "site.css"):
        shutil.copyfile(Path(__file__).with_name(name), pages / "assets" / name)
    for source, target in BESIDE.items():
        if not (pages / target).exists():
            shutil.copyfile(ROOT / source, pages / target)
    sources = {target: PurePosixPath(source) for source, target in BESIDE.items() if source != "README.md"}
    for page in sorted(pages.rglob("*.md")):
        name = page.relative_to(pages).as_posix()
        source = sources.get(name, PurePosixPath("docs", name))
        page.write_text(adapted(page.read_text(encoding="utf-8"), source), encoding="utf-8")
    for name, text in reference.pages().items():
        page = pages / "reference" / name
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text, encoding="utf-8")


def adapted(text: str, source: PurePosixPath) -> str:
    """A page as Python-Markdown reads it: links within the site, a blank line in front of lists and tables.

    Args: source: the page's path in the project.
    """
    lines: list[str] = []
    fenced = False
    for line in text.splitlines():
        fence = FENCE.match(line)
        fenced ^= fence is not None
        if not fenced and fence is None:
            line = LINK.sub(lambda found: _link(found, source), line)
            before = lines[-1] if lines else ""
            begins = (ITEM.match(line) and not ITEM.match(before) and not before.startswith("  ")) or (
                line.startswith("|") and not before.startswith("|")
            )
            if begins and before.strip():
                lines.append("")
        lines.append(line)
    return "\n".join(lines) + "\n"


def _link(found: re.Match[str], source: PurePosixPath) -> str:
    """A link to a page of the site stays one; to other files of the project it becomes what it says."""
    image, text, address, anchor = found[1], found[2], found[3], found[4] or ""
    if not address or "://" in address:
        return found[0]
    target = os.path.normpath(source.parent / address).replace(os.sep, "/")
    here = BESIDE.get(str(source), str(source).removeprefix("docs/"))
    if target in BESIDE:
        there = BESIDE[target]
    elif target.startswith("docs/") and not target.startswith("docs/site/"):
        there = target.removeprefix("docs/")
    else:
        return text
    relative = os.path.relpath(there, start=str(PurePosixPath(here).parent)).replace(os.sep, "/")
    return f"{image}[{text}]({relative}{anchor})"


def configuration(pages: Path, out: Path) -> dict[str, Any]:
    """mkdocs.yml beside this file, with the folders, the reference, and every page that it does not name."""
    told: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("mkdocs.yml").read_text(encoding="utf-8"))
    told |= {"docs_dir": str(pages), "site_dir": str(out)}
    settings = sorted(
        (page.relative_to(pages).as_posix() for page in pages.glob("reference/settings/*.md")), key=_order
    )
    told["nav"].append({"Reference": ["reference/commands.md", "reference/python.md", {"Settings": settings}]})
    named = set(_named(told["nav"]))
    others = [name for page in sorted(pages.rglob("*.md")) if (name := page.relative_to(pages).as_posix()) not in named]
    if others:
        told["nav"].append({"More": others})
    return told


def _order(name: str) -> tuple[int, str]:
    """As a run reads them, the run's own first."""
    import reference

    return reference.sections().index(PurePosixPath(name).stem), name


def _named(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for entry in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _named(entry)


class _Requests(HTMLParser):
    """Addresses of other hosts that a browser would ask by itself when it shows the page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        address = given.get("href") if tag == "link" and given.get("rel") != "canonical" else given.get("src")
        if address and re.match(r"(https?:)?//", address):
            self.found.append(address)


def requests(out: Path) -> Iterator[tuple[Path, str]]:
    """What the pages and style sheets below `out` would fetch from elsewhere."""
    for page in sorted(out.rglob("*.html")):
        parser = _Requests()
        parser.feed(page.read_text(encoding="utf-8"))
        yield from ((page, address) for address in parser.found)
    for sheet in sorted(out.rglob("*.css")):
        text = sheet.read_text(encoding="utf-8")
        yield from (
            (sheet, address) for address in re.findall(r"(?:url\(|@import )[\"']?((?:https?:)?//[^\"')]+)", text)
        )


if __name__ == "__main__":
    sys.exit(main())
