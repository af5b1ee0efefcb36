"""`rapidun index build|verify|fit|score|top`: a large training set's gradients on disk, and queries to them."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rapidun.base.errors import ArtifactError, ConfigError
from rapidun.cli.commands import FOLDER, MODEL, Parser
from rapidun.cli.flags import add_setting, count, positive, positive_float
from rapidun.config import keys
from rapidun.config.index import RESPONSES, IndexSettings
from rapidun.config.influence import InfluenceConfig, Precondition, Score
from rapidun.config.parts import LoraSettings

SETTINGS = {setting.name: setting for setting in dataclasses.fields(IndexSettings)}
STAGE = InfluenceConfig()


def main(argv: Sequence[str]) -> int:
    """The command line. Returns 0; 1 where `verify` finds shards missing and nothing damaged."""
    args = parser().parse_args(argv)
    args.argv = list(argv)
    if args.verb == "build":
        args.settings = _settings(args)
    elif args.verb in ("score", "top"):
        _check_query(args)
    if args.verb == "verify":
        return _verify(args.index)
    # torch, which faults of the command line and numbers on disk need not wait for
    from rapidun.cli.index_verbs import VERBS

    return VERBS[args.verb](args)


def parser() -> Parser:
    """`verb` of the result is build, verify, fit, score or top."""
    made = Parser(
        prog="rapidun index", description="An index of a large training set's gradients on disk, and queries to it."
    )
    verbs = made.add_subparsers(dest="verb", required=True, metavar="build|verify|fit|score|top", parser_class=Parser)

    build = verbs.add_parser(
        "build",
        help="make an index, or go on with one",
        description="Make the index of a training set's gradients. Run the same command again to go on, and "
        "as often at the same time as there are machines: every worker takes shards that nobody has made yet.",
    )
    build.add_argument(
        "--rows", type=Path, required=True, metavar="FILE", help="the training rows (docs/packs.md: formats)"
    )
    build.add_argument("--out", type=FOLDER, required=True, metavar="DIR", help="the index")
    _add_model(build, "poisoned: response_poisoned where a row has one")
    for name in SETTINGS:
        if name == "lora":
            lora = LoraSettings()
            text = f"rank, for --params lora without --adapter (default {lora.r})"
            build.add_argument("--lora-r", type=positive, help=text)
            text = f"what it adapts (default {lora.target_modules})"
            build.add_argument("--lora-targets", metavar="A,B,C", help=text)
        elif name != "device":
            add_setting(build, IndexSettings, name)
    build.add_argument("--workers", type=positive, default=1, help="processes on this machine")

    verify = verbs.add_parser("verify", help="read all of an index and check it")
    verify.add_argument("index", type=FOLDER, metavar="DIR")

    fit = verbs.add_parser(
        "fit",
        help="fit what the queries' gradients can be preconditioned with",
        description="Fit K-FAC or EK-FAC factors on some rows, with the index's own settings, for --precondition of "
        "score and top. The index stays as it is.",
    )
    fit.add_argument("index", type=FOLDER, metavar="DIR")
    fit.add_argument("--rows", type=Path, required=True, metavar="FILE", help="like the training rows")
    fit.add_argument("--out", type=FOLDER, required=True, metavar="DIR", help="the factors")
    _add_model(fit, "of the rows")
    fit.add_argument("--kind", choices=[p.name for p in Precondition if p is not Precondition.none], required=True,
                     help="kfac: one pass over the rows; ekfac: two")  # fmt: skip
    fit.add_argument("--seed", type=count, default=STAGE.seed, help="of the labels drawn from the model")

    score = verbs.add_parser("score", help="write the score of every row for every query")
    _add_query(score)

    top = verbs.add_parser("top", help="write the best rows of every query, and the best queries of every row")
    _add_query(top)
    top.add_argument("--k", type=positive, default=100, help="rows of a query")
    top.add_argument("--per-row", type=count, default=0, metavar="M", help="also the best M queries of every row")
    top.add_argument("--tokens", type=count, default=0, metavar="M",
                     help="also tokens.json: a query's best M rows token by token, exact (needs --rows)")  # fmt: skip
    top.add_argument("--by", choices=["position", "loss"], default="position",
                     help="tokens: of the input, or of the response by their losses")  # fmt: skip
    return made


def _add_model(verb: argparse.ArgumentParser, responses: str) -> None:
    verb.add_argument("--model", type=MODEL, required=True, metavar="DIR", help="a model folder or hub id")
    verb.add_argument("--adapter", type=FOLDER, metavar="DIR", help="a PEFT adapter on it")
    add_setting(verb, IndexSettings, "device")
    verb.add_argument("--response", choices=list(RESPONSES), help=f"{responses} (default response)")


def _add_query(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("index", type=FOLDER, metavar="DIR")
    verb.add_argument("--queries", type=Path, required=True, metavar="FILE", help="like the training rows")
    verb.add_argument("--out", type=FOLDER, required=True, metavar="DIR", help="where the result goes")
    _add_model(verb, "of the queries")
    verb.add_argument("--score", choices=[s.name for s in Score], default=STAGE.score.name)
    verb.add_argument("--precondition", type=FOLDER, metavar="DIR",
                      help="the factors of rapidun index fit, for the queries' gradients")  # fmt: skip
    verb.add_argument("--damping-factor", type=positive_float, metavar="X",
                      help="added to each eigenvalue, as a share of their mean in the layer "
                      f"(default {STAGE.damping_factor})")  # fmt: skip
    verb.add_argument("--rerank", type=positive, metavar="N",
                      help="score a query's best N rows again, by the gradients themselves (needs --rows)")  # fmt: skip
    needed = "--rerank and --tokens" if verb.prog.endswith("top") else "--rerank"
    verb.add_argument("--rows", type=Path, metavar="FILE", help=f"the rows the index was made of, for {needed}")
    verb.add_argument("--memory-gb", type=positive_float, default=1.0, help="for scoring, beside the model (default 1)")
    verb.add_argument("--drop-cache", action="store_true", help="keep what was read out of the system's file cache")


def _settings(args: argparse.Namespace) -> IndexSettings:
    """What the flags of `build` say.

    Raises: ConfigError for an option that would be ignored, and for every fault that the influence stage would find.
    """
    given: dict[str, Any] = {}
    for name in SETTINGS:
        if name == "lora":
            continue
        value, kind = getattr(args, name), keys.hints(IndexSettings)[name]
        if value is not None:
            given[name] = kind[value] if keys.choices(kind) else value
    for name in given:
        other, wanted = SETTINGS[name].metadata.get("only", (name, given[name]))
        if given[other] is not wanted:
            raise _ignored(name, f"--{other} {wanted.name}")
    fresh = args.params == "lora" and args.adapter is None
    for name in ("lora_r", "lora_targets"):
        if getattr(args, name) is not None and not fresh:
            raise _ignored(name, "--params lora without --adapter")
    lora = LoraSettings()
    rank = args.lora_r or lora.r
    targets = args.lora_targets.split(",") if args.lora_targets else lora.target_modules
    settings = IndexSettings(**given, lora=LoraSettings(r=rank, lora_alpha=rank, target_modules=targets))
    shared = {name: getattr(settings, name) for name in SETTINGS if name in keys.hints(InfluenceConfig)}
    faults = InfluenceConfig(**shared).check()
    if faults:
        # the words of the configuration, without its places
        raise ConfigError([fault.partition(". Change conf/")[0] + ". Change --params and so on" for fault in faults])
    return settings


def _verify(index: Path) -> int:
    # numpy
    from rapidun.stages.influence.index.verify import verify_index

    found = verify_index(index)
    if found.faults:
        raise ArtifactError("\n".join(found.faults))
    if found.num_missing:
        print(
            f"{index}: {found.num_shards - found.num_missing} of {found.num_shards} shards are whole, "
            "the others are not made yet. Run the same rapidun index build again"
        )
        return 1
    print(f"{index}: {found.num_rows} rows in {found.num_shards} shards, each once, every byte as it was written")
    return 0


def _ignored(name: str, wanted: str) -> ConfigError:
    option = f"--{name.replace('_', '-')}"
    return ConfigError(f"command line: need {wanted} with {option}, got none. Leave {option} out, or pass it")


def _check_query(args: argparse.Namespace) -> None:
    """Raises: ConfigError for options that do not go together."""
    if args.precondition is None and args.damping_factor is not None:
        raise ConfigError(
            "command line: need --precondition DIR with --damping-factor, got none. "
            f"See rapidun index {args.verb} --help"
        )
    tokens = args.verb == "top" and args.tokens
    for option, given in (("--rerank", args.rerank), ("--tokens", tokens)):
        if given and args.rows is None:
            raise ConfigError(f"index {args.verb}: need the rows of the index for {option}, got none. Pass --rows FILE")
    if args.verb == "score" and args.rows is not None and not args.rerank:
        raise ConfigError("index score: need --rerank N with --rows, got none. Leave --rows out, or pass it")
    if tokens and args.precondition is not None:
        raise ConfigError(
            "index top: need --tokens without --precondition (tokens.json splits exact scores of plain gradients), "
            "got both. Leave one of them out"
        )
