"""The options of `rapidun index build|verify|fit|score|top`."""

import argparse
import math
from pathlib import Path
from typing import NoReturn

from rapidun.base.errors import ConfigError
from rapidun.config.influence import InfluenceConfig, LossReduction, ParameterSet, Precondition, Score
from rapidun.config.parts import LORA_TARGETS, LoraSettings
from rapidun.stages.influence.index.format import IndexDtype


class _Parser(argparse.ArgumentParser):
    """Faults of the command line come out like all others: one message, status 2."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}. See {self.prog} --help")


def index_parser() -> argparse.ArgumentParser:
    """`verb` of the result is build, verify, fit, score or top."""
    parser = _Parser(
        prog="rapidun index", description="An index of a large training set's gradients on disk, and queries to it."
    )
    verbs = parser.add_subparsers(
        dest="verb", required=True, metavar="build|verify|fit|score|top", parser_class=_Parser
    )

    build = verbs.add_parser(
        "build",
        help="make an index, or go on with one",
        description="Make the index of a training set's gradients. Run the same command again to go on, and "
        "as often at the same time as there are machines: every worker takes shards that nobody has made yet.",
    )
    build.add_argument("--rows", type=Path, required=True, metavar="FILE", help="the training rows, JSONL")
    build.add_argument("--out", type=Path, required=True, metavar="DIR", help="the index")
    _add_model(build)
    build.add_argument("--response", choices=["response", "poisoned"], default="response",
                       help="poisoned: response_poisoned where a row has one")  # fmt: skip
    build.add_argument("--params", choices=[p.name for p in ParameterSet], default="all_linear")
    build.add_argument("--regex", help="full match on module names, for --params regex")
    build.add_argument(
        "--lora-r", type=_positive, help=f"rank, for --params lora without --adapter (default {LoraSettings().r})"
    )
    build.add_argument("--lora-targets", metavar="A,B,C", help=f"what it adapts (default {','.join(LORA_TARGETS)})")
    build.add_argument("--loss", choices=[r.name for r in LossReduction], default="mean")
    build.add_argument("--method", choices=["sketch", "tensorsketch"], default="sketch")
    build.add_argument("--k", type=_positive, default=4096, help="numbers a row")
    build.add_argument("--buckets", type=_positive, metavar="B",
                       help=f"tensorsketch: numbers of a weight (default {InfluenceConfig().buckets})")  # fmt: skip
    build.add_argument("--seed", type=int, default=42, help="of the sketch")
    build.add_argument("--dtype", choices=[d.name for d in IndexDtype], default="int8", help="of a stored number")
    build.add_argument("--shard-rows", type=_positive, default=1024, help="rows of a shard: what one claim is worth")
    build.add_argument("--max-length", type=_positive, default=256, help="tokens of a row")
    build.add_argument("--tokens-per-batch", type=_positive, default=2048)
    build.add_argument("--threads", type=_positive, default=1, help="of one worker; other numbers may round otherwise")
    build.add_argument("--model-dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    build.add_argument("--quantisation", choices=["none", "4bit", "8bit"], default="none")
    build.add_argument("--attention", default="auto", help="an attention of transformers: sdpa, eager, ...")
    build.add_argument("--workers", type=_positive, default=1, help="processes on this machine")

    verify = verbs.add_parser("verify", help="read all of an index and check it")
    verify.add_argument("index", type=Path, metavar="DIR")

    fit = verbs.add_parser(
        "fit",
        help="fit what the queries' gradients can be preconditioned with",
        description="Fit K-FAC or EK-FAC factors on some rows, with the index's own settings, for --precondition of "
        "score and top. The index stays as it is.",
    )
    fit.add_argument("index", type=Path, metavar="DIR")
    fit.add_argument("--rows", type=Path, required=True, metavar="FILE", help="JSONL, like the training rows")
    fit.add_argument("--out", type=Path, required=True, metavar="DIR", help="the factors")
    _add_model(fit)
    fit.add_argument("--response", choices=["response", "poisoned"], default="response", help="of the rows")
    fit.add_argument("--kind", choices=[p.name for p in Precondition if p is not Precondition.none], required=True,
                     help="kfac: one pass over the rows; ekfac: two")  # fmt: skip
    fit.add_argument("--seed", type=int, default=InfluenceConfig().seed, help="of the labels drawn from the model")

    score = verbs.add_parser("score", help="write the score of every row for every query")
    _add_query(score)

    top = verbs.add_parser("top", help="write the best rows of every query, and the best queries of every row")
    _add_query(top)
    top.add_argument("--k", type=_positive, default=100, help="rows of a query")
    top.add_argument("--per-row", type=_count, default=0, metavar="M", help="also the best M queries of every row")
    top.add_argument("--tokens", type=_count, default=0, metavar="M",
                     help="also tokens.json: a query's best M rows token by token, exact (needs --rows)")  # fmt: skip
    top.add_argument("--rows", type=Path, metavar="FILE", help="the rows the index was made of, for --tokens")
    top.add_argument("--by", choices=["position", "loss"], default="position",
                     help="tokens: of the input, or of the response by their losses")  # fmt: skip
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="a model folder or hub id")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="a PEFT adapter on it")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def _add_query(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", type=Path, metavar="DIR")
    parser.add_argument("--queries", type=Path, required=True, metavar="FILE", help="JSONL, like the training rows")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the result goes")
    _add_model(parser)
    parser.add_argument("--response", choices=["response", "poisoned"], default="response", help="of the queries")
    parser.add_argument("--score", choices=[s.name for s in Score], default="cosine")
    parser.add_argument("--precondition", type=Path, metavar="DIR",
                        help="the factors of rapidun index fit, for the queries' gradients")  # fmt: skip
    parser.add_argument("--damping-factor", type=_positive_float, metavar="X",
                        help="added to each eigenvalue, as a share of their mean in the layer "
                        f"(default {InfluenceConfig().damping_factor})")  # fmt: skip
    parser.add_argument(
        "--memory-gb", type=_positive_float, default=1.0, help="for scoring, beside the model (default 1)"
    )
    parser.add_argument("--drop-cache", action="store_true", help="keep what was read out of the system's file cache")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"need a number >= 1, got {text}")
    return value


def _positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"need a number > 0, got {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"need a number >= 0, got {text}")
    return value
