"""What `rapidun doctor` found, how a check is kept from hanging, and how it is all shown."""

import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rapidun.base.text import short_message

WIDTH = 80
NAME_WIDTH = 17
# a blank at which no line ends
KEPT_TOGETHER = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that will not work here; `needed` says that the configuration looked at needs it."""

    what: str
    why: str
    remedy: str
    needed: bool = False


@dataclass(slots=True)
class Findings:
    """Facts of one section in the order shown, and what will not work."""

    facts: list[tuple[str, str]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def fact(self, name: str, value: str) -> None:
        self.facts.append((name, value))

    def problem(self, what: str, why: str, remedy: str, *, needed: bool = False) -> None:
        found = Problem(what, why, remedy, needed)
        if found not in self.problems:
            self.problems.append(found)


def bounded(check: Callable[[], Findings], *, title: str, seconds: float) -> Findings:
    """Run a check in a thread of its own, so that a dead file server or name server cannot hold up the rest.

    Returns: what it found; where it did not end in time or failed, that, as a problem.
    """
    done: list[Findings] = []
    thread = threading.Thread(target=lambda: done.append(_guarded(check, title)), daemon=True)
    thread.start()
    thread.join(seconds)
    if done:
        return done[0]
    found = Findings()
    found.fact(title, f"no answer within {seconds:g} s")
    found.problem(
        f"looking at {title}", f"no answer within {seconds:g} s", "a file system or server may hang; try again"
    )
    return found


def _guarded(check: Callable[[], Findings], title: str) -> Findings:
    try:
        return check()
    except Exception as error:  # whatever a broken installation or machine comes up with is a finding
        found = Findings()
        found.problem(
            f"looking at {title}", f"{type(error).__name__}: {short_message(error)}", "report this", needed=True
        )
        return found


def shown(title: str, found: Findings) -> str:
    """A section as text of 80 columns."""
    lines = [title]
    for name, value in found.facts:
        first = f"  {name:<{NAME_WIDTH}} "
        # a long path must stay one word, to be copied
        lines += textwrap.wrap(
            value, WIDTH, initial_indent=first, subsequent_indent=" " * len(first), break_long_words=False,
            break_on_hyphens=False,
        ) or [first.rstrip()]  # fmt: skip
    return "\n".join(lines).replace(KEPT_TOGETHER, " ")


def verdict(problems: list[Problem], *, overrides: bool) -> str:
    """What will not work: first what was asked for, then the rest, each with what to do."""
    needed = [problem for problem in problems if problem.needed]
    others = [problem for problem in problems if not problem.needed]
    subject = "this configuration" if overrides else "the default configuration"
    parts = [f"will not work, and {subject} needs it" if needed else f"{subject} will work here"]
    parts += _listed(needed)
    if others:
        parts += ["", "would not work here, if it were asked for", *_listed(others)]
    return "\n".join(parts)


def _listed(problems: list[Problem]) -> Iterator[str]:
    for problem in problems:
        text = f"{problem.what}: {problem.why}"
        yield textwrap.fill(
            text, WIDTH, initial_indent="  - ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
        )
        yield textwrap.fill(
            problem.remedy, WIDTH, initial_indent="    -> ", subsequent_indent="       ", break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip


def as_json(sections: dict[str, Findings]) -> dict[str, Any]:
    """The same as plain values: ok, facts by section, problems."""
    problems = [problem for found in sections.values() for problem in found.problems]
    return {
        "ok": not any(problem.needed for problem in problems),
        "facts": {
            title: {name: value.replace(KEPT_TOGETHER, " ") for name, value in found.facts}
            for title, found in sections.items()
        },
        "problems": [
            {"what": problem.what, "why": problem.why, "remedy": problem.remedy, "asked": problem.needed}
            for problem in problems
        ],
    }
