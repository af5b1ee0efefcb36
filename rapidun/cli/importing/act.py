"""What `rapidun import` does: read, translate, try, compare, write, say."""

import argparse
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rapidun.base.errors import ConfigError, DataError
from rapidun.base.files import write_text
from rapidun.base.limits import refusal
from rapidun.cli.importing.checkout import open_checkout
from rapidun.cli.importing.experiment import counts, experiment_text, markdown, output_file, table_text
from rapidun.cli.importing.files import compare_weights, look
from rapidun.cli.importing.release_keys import Translation, Verdict, named_paths
from rapidun.config.compose import compose_config
from rapidun.config.experiments import GROUP, path_fault
from rapidun.config.paths import config_dir
from rapidun.config.quoting import quoted, typed
from rapidun.config.run import RunConfig

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def act(options: argparse.Namespace) -> int:
    """Args: options: of the command's parser. Returns the exit status.

    Raises: ConfigError, DataError; then nothing was written.
    """
    checkout = open_checkout(options.checkout)
    target = output_file(options.out, checkout.config)
    _check_target(target, force=options.force)
    files = look(checkout, named_paths(checkout.settings))
    made = Translation(checkout, {setting.key: setting for setting in checkout.settings}, files)
    made.go()
    text = experiment_text(made, name=target.stem)
    cfg = _composed(text, target.stem, checkout.config)
    compared = compare_weights(cfg.mapping, files) if files.blocks and files.weights else []
    warnings = [*files.warnings, *_warnings(made), *(line for line in compared if line.startswith("DIFFERENT"))]
    found = [*files.facts, *(line for line in compared if not line.startswith("DIFFERENT"))]
    found += [f"not looked into: {file} (no section rapidin or rapidun)" for file in checkout.others]
    _write(target, text, markdown(made, cfg, found=found, warnings=warnings))
    print(f"{checkout.config}\n\n{table_text(made.lines)}\n\n{counts(made.lines)}")
    for line in found:
        print(f"found: {line}")
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
    print(_next_steps(target, made))
    return 0


def _check_target(target: Path, *, force: bool) -> None:
    """Raises: ConfigError for a place where nothing can or should be written."""
    if target.suffix != ".yaml" or not NAME.fullmatch(target.stem):
        raise ConfigError(
            f"--out: need a NAME of letters, digits, _ . - or a path that ends in {GROUP}/NAME.yaml, got {target}"
        )
    if target.absolute().parent.name != GROUP:
        raise ConfigError(f"--out: need a path that ends in {GROUP}/NAME.yaml, where Hydra looks, got {target}")
    there = [file for file in (target, target.with_suffix(".md")) if file.exists()]
    if there and not force:
        raise ConfigError(f"--out: need a new name, got {there[0]}, which is there. Pass --out NAME, or --force")
    own = config_dir() / GROUP / target.name
    if own.exists() and own.resolve() != target.resolve():
        raise ConfigError(f"--out: need a name that conf/{GROUP}/ does not have, got {target.stem}. Pass --out NAME")


def _composed(text: str, name: str, config: Path) -> RunConfig:
    """What the experiment composes to, tried before it is written.

    Raises: ConfigError with every value that our settings do not take.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / GROUP / f"{name}.yaml"
        write_text(file, text)
        if path_fault(str(file)):
            file = file.rename(file.with_name(f"{name}_imported.yaml"))
        try:
            return compose_config([_chosen(file)])
        except ConfigError as error:
            raise ConfigError([f"{config}: not allowed here: {fault}" for fault in error.faults]) from None


def _chosen(file: Path) -> str:
    """The override that chooses an experiment file; no shell reads it."""
    return f"{GROUP}={quoted(str(file))}"


def _warnings(made: Translation) -> list[str]:
    lines = []
    unknown = [line.key for line in made.lines if line.verdict is Verdict.unknown]
    if unknown:
        word = "key is" if len(unknown) == 1 else "keys are"
        lines.append(f"{len(unknown)} {word} unknown and not taken: {', '.join(unknown)}")
    missing = [line for line in made.lines if line.verdict is Verdict.missing]
    if missing:
        named = "; ".join(f"{line.key} = {line.value}" for line in missing)
        lines.append(f"{len(missing)} of the paths are not there: {named}")
    if wanted := _to_pass(made):
        lines.append(f"the whole pipeline needs {' and '.join(wanted)}")
    return lines


def _to_pass(made: Translation) -> list[str]:
    """The overrides without which a whole run has no model or no pack."""
    needed = {line.ours for line in made.lines if line.verdict is Verdict.missing}
    return [f"{key}=DIR" for key in ("model.path", "data.dir") if key in needed and key in made.here]


def _write(target: Path, text: str, table: str) -> None:
    """Both files or none.

    Raises: DataError where they cannot be written.
    """
    beside = target.with_suffix(".md")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        before = beside.read_bytes() if beside.exists() else None
        write_text(beside, table)
        try:
            write_text(target, text)
        except OSError:
            if before is None:
                beside.unlink()
            else:
                beside.write_bytes(before)
            raise
    except OSError as error:
        said = f"--out: need a place that can be written, got {target}: {error.strerror or error}"
        raise refusal(error) or DataError(said) from None


def _next_steps(target: Path, made: Translation) -> str:
    in_conf = target.resolve().parent == (config_dir() / GROUP).resolve()
    choice = f"+{GROUP}={target.stem}" if in_conf else typed(f"+{GROUP}", str(target))
    steps = [f"rapidun {choice} 'stages=[mapping]'"] if made.files.blocks else []
    whole = " ".join([choice, *_to_pass(made)])
    steps += [f"rapidun -m {whole} sweep.dry_run=true", f"rapidun {whole}"]
    said = ["the weights, in seconds: no model, no pack", "the whole pipeline composed; runs nothing", "runs it"][
        -len(steps) :
    ]
    width = max(map(len, steps))
    return "\n".join(
        [
            f"\nwritten: {target}, and this table in {target.with_suffix('.md')}",
            "go on with",
            *(f"  {step:<{width}}  # {word}" for step, word in zip(steps, said, strict=True)),
        ]
    )
