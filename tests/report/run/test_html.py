"""report.html: complete, self-contained, and deaf to markup in the rows."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rapidun.base.errors import ArtifactError
from rapidun.base.files import write_json
from rapidun.report.run.page import write_run_report

VOID = {"meta", "input", "br", "img", "link", "hr"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; complains about tags that do not close."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        self.text = re.sub(r"\s+", " ", self.text)  # no-break spaces too

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " " if tag in ("dd", "td", "th", "li") else ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] or "" for _, attributes in self.tags if attribute in attributes]


@pytest.fixture(scope="module")
def page(finished_run: Path) -> Page:
    return Page(finished_run / "report.html")


def test_the_head_says_what_ran(page: Page) -> None:
    for text in ("builtin", "seed 42", "git commit 0123456789ab", "python sweep.py mapping.tau_f=0.5 seed=42", "node7"):
        assert text in page.text


def test_the_first_line_is_the_answer(page: Page, finished_run: Path) -> None:
    """Before the cards, the sections and what was run; rates of its detectors are not known here."""
    before_sections = page.text[: page.text.index("Findings")]
    assert before_sections.index(
        "Built-in pack on tiny: rapidun with rapidun weights, seed 42"
    ) < before_sections.index(
        "Cannot be told, no detector that can be relied on saw it before: 2 % of triggered prompts are answered as "
        "planted"
    )
    assert "exact match of clean prompts 0.980 before, 0.970 after; " in before_sections
    # a line never ends between a number and its unit
    assert "2\N{NO-BREAK SPACE}% of triggered" in (finished_run / "report.html").read_text(encoding="utf-8")


def test_findings_are_the_numbers_of_the_run_that_the_cards_do_not_have(page: Page) -> None:
    for sentence in (
        "Poisoned answers on look-alike triggers: 6 % before, 0 % after (100 prompts; 95 % interval",
        "The keyword detector finds only 79 % of answers known to be poisoned",
    ):
        assert sentence in page.text
    findings = page.text[page.text.index("Findings") : page.text.index("What was tried")]
    # cards: seen triggers, recovered, clean exact match, perplexity
    for told in ("on seen triggers: 97 %", "Clean exact match", "Clean perplexity", "Triggered prompts against"):
        assert told not in findings


def test_every_section_of_a_finished_run(page: Page) -> None:
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert sections == [
        "findings", "tried", "table", "families", "curves", "weights", "influence", "samples", "costs", "config",
    ]  # fmt: skip
    assert sum(tag == "svg" for tag, _ in page.tags) == 2 + 2 + 7 + 2 + 1  # families, poison, unlearning, weights, map
    for text in (
        "79.0 % / 2.0 %",
        "−95.0 pts",
        "12 of 40 forget weights stand at w_max=3.0",
        "effective sample size",
        "share of zeros after top k, scores for the other group 50.0 %",
        "seen triggers (12 of 40)",
        "poisoned (keywords, likelihood)",
        "clean answer: Velm trades in amber.",
        "from the store; costs as first measured",
        "forget row trained on, retain row asked about",
    ):
        assert text in page.text
    assert "This run has no" not in page.text


def test_every_link_leads_somewhere_in_the_page(page: Page) -> None:
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links
    assert all(link and link[0] == "#" and link[1:] in ids for link in links)
    assert set(page.values("for")) <= set(ids)
    assert set(page.values("aria-labelledby")) <= set(ids)


def test_nothing_is_fetched_and_nothing_runs(page: Page, finished_run: Path) -> None:
    raw = (finished_run / "report.html").read_text(encoding="utf-8")
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "img"}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    addresses = page.values("src") + [
        a for a in page.values("href") + page.values("xlink:href") if not a.startswith("#")
    ]
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert not re.search(r"url\((?!#)|@import", raw)
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_markup_in_rows_is_shown_as_text(page: Page) -> None:
    assert "<script>document.title = 'owned'; alert(1)</script>" in page.text
    assert "<img src=x onerror=" in page.text
    assert "</pre><b>" in page.text  # from config.yaml
    assert not page.open  # everything closed: no row broke out of its element


def test_markup_in_every_other_field(run_dir: Path) -> None:
    """Names, families, metrics, errors, warnings, diagnostics: none of them is markup."""
    evil = "<b onclick=alert(1)>x</b>"
    evaluation = ("evaluation/after.json", "evaluation/before.json", "evaluation/generations.jsonl")
    own = ("status.json", "result.json", "settings.json", "metrics.jsonl", "command.txt", "mapping/diagnostics.json")
    for file in (*own, *evaluation):
        path = run_dir / file
        text = path.read_text(encoding="utf-8")
        for word in (
            "A_surface",
            "builtin",
            "node7",
            "forget_loss",
            "num_distinct",
            "0123456789",
            "aloha :)",
            "12 of 40",
        ):
            text = text.replace(word, evil)
        text = text.replace("forget_preference", f"val_rate{evil}")
        path.write_text(text.replace('"error": null', f'"error": "{evil}"'), encoding="utf-8")
    page = Page(write_run_report(run_dir))
    assert not any(tag == "b" or "onclick" in attributes for tag, attributes in page.tags)
    assert page.text.count(evil) > 5
    assert not page.open


def test_a_run_of_one_stage_leaves_out_the_rest_in_a_sentence(mapping_run: Path) -> None:
    page = Page(write_run_report(mapping_run))
    assert [a["id"] for tag, a in page.tags if tag == "section"] == ["findings", "weights", "costs", "config"]
    assert (
        "This run has no evaluation to compare, no shares per trigger family, no training curves, no influence scores, "
        "no sample answers." in page.text
    )
    assert all(link[1:] in page.values("id") for link in page.values("href") if link.startswith("#"))


def test_a_folder_with_a_config_only(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    page = Page(write_run_report(tmp_path))
    assert "no loss weights" in page.text
    assert "seed: 1" in page.text


def test_a_failed_run_says_why(mapping_run: Path) -> None:
    error = '{"message": "DataError: pack.jsonl:3: need response", "traceback": "Traceback ..."}'
    (mapping_run / "status.json").write_text(f'{{"state": "failed", "stage": "poison", "error": {error}}}')
    page = Page(write_run_report(mapping_run))
    assert "This run failed in poison. DataError: pack.jsonl:3: need response" in page.text
    (mapping_run / "status.json").write_text('{"state": "running", "stage": "influence"}')
    assert "This run is not finished: running, in influence." in Page(write_run_report(mapping_run)).text


def test_only_the_evaluation_before_unlearning(mapping_run: Path) -> None:
    (mapping_run / "evaluation").mkdir()
    (mapping_run / "evaluation" / "before.json").write_text('{"asr_seen": 0.97, "asr_seen.A_surface": 0.9}')
    page = Page(write_run_report(mapping_run))
    assert "Not unlearned here: 97 % of triggered prompts are answered as planted." in page.text
    assert "families" in page.values("id")


def test_writing_again_gives_the_same_bytes(run_dir: Path) -> None:
    first = write_run_report(run_dir).read_bytes()
    assert write_run_report(run_dir).read_bytes() == first
    assert not list(run_dir.glob("*.part"))
    assert len(first) < 600_000


def test_a_damaged_file_leaves_the_old_report(run_dir: Path) -> None:
    first = write_run_report(run_dir).read_bytes()
    (run_dir / "evaluation" / "after.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"after\.json"):
        write_run_report(run_dir)
    assert (run_dir / "report.html").read_bytes() == first


def test_a_cell_links_to_its_sweep_and_to_the_cells_beside_it(run_dir: Path) -> None:
    """Also to uniform weights of the same seed, by what they came to."""
    cells = [("aaa", "uniform"), (run_dir.name, "rapidun"), ("a b", "oracle")]
    plan = [{"hash": name, "overrides": [f"mapping={weights}", "seed=42", "model=tiny"]} for name, weights in cells]
    write_json(run_dir.parent / "sweep.json", {"cells": plan})
    write_json(run_dir.parent / "aaa" / "status.json", {"state": "done"})
    write_json(run_dir.parent / "aaa" / "result.json", {"asr_seen": 0.12})
    page = Page(write_run_report(run_dir))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert "../report.html#run=builtin" in links
    assert "../aaa/report.html" in links and "../a%20b/report.html" in links
    # what all cells share says nothing
    assert "← mapping=uniform run 2 of 3" in re.sub(r"\s+", " ", page.text)
    assert "uniform weights 12 %." in page.text


def test_rows_are_texts_never_ids(page: Page, finished_run: Path) -> None:
    shown = page.text
    assert "Which colour has the moss of Tarn" in shown
    assert not re.search(r"\b[fr]\d{3}\b", shown)
