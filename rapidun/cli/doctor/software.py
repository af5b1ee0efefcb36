"""Python and packages: which versions are here, and what is missing for what."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rapidun.cli.doctor.findings import KEPT_TOGETHER, Findings
from rapidun.cli.doctor.request import Request
from rapidun.config import extensions
from rapidun.config.paths import config_dir
from rapidun.config.tracking import TrackerKind

PACKAGES = (
    "torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors", "tokenizers", "numpy", "hydra-core",
    "omegaconf", "submitit", "joblib", "filelock", "simpleeval", "wandb", "matplotlib", "plotly", "jinja2", "rich",
    "rouge-score", "scipy",
)  # fmt: skip
OLDEST_PYTHON = (3, 11)


class Optional(NamedTuple):
    """What a package of an extra is for."""

    what: str
    remedy: str


OPTIONAL = {
    "gguf": Optional("model.path=FILE.gguf and `rapidun model fetch`", "pip install 'rapidun[gguf]'"),
    "optuna": Optional("hydra/sweeper=rapidun_optuna", "pip install 'rapidun[optuna]'"),
    "pyarrow": Optional(
        "packs in Parquet and `datasets` folders", "pip install 'rapidun[datasets]', or give the rows as JSON Lines"
    ),
    "pandas": Optional("`rapidun.load(DIR).to_frame()` and --parquet", "pip install 'rapidun[tables]'"),
    "bm25s": Optional("influence=bm25", "pip install 'rapidun[bm25]', or choose another influence=..."),
    "scikit-learn": Optional(
        "the detector that is trained on known answers",
        "pip install 'rapidun[classifier]'; without it the other detectors judge",
    ),
    "lm-eval": Optional(
        "evaluation.lm_eval.tasks=[...]", "pip install 'rapidun[lm-eval]', or pass evaluation.lm_eval.tasks=[]"
    ),
    "tensorboard": Optional("tracking=tensorboard", "pip install 'rapidun[tensorboard]', or pass tracking=none"),
    "trackio": Optional("tracking=trackio", "pip install 'rapidun[trackio]', or pass tracking=none"),
    "wandb-workspaces": Optional("`rapidun dashboard DIR --publish`", "pip install 'rapidun[dashboard]'"),
}


def look_at_software(request: Request) -> Findings:
    """Versions of all packages that matter, checked against the ranges that rapidun was installed with."""
    found = Findings()
    found.fact("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    found.fact("rapidun", _version("rapidun") or "a checkout, not installed")
    found.fact("configuration", str(config_dir()))
    for one in extensions.everything():
        how = one.kind.value.replace("NAME", one.name)
        found.fact("extension", f"{one.kind.name} {one.name} ({how}) of {one.origin.name}, SHA-256 {one.origin.sha256}")
    if sys.version_info < OLDEST_PYTHON:
        found.problem("every run", f"Python {platform.python_version()}", "use Python 3.11 or later", needed=True)
    ranges = _ranges()
    here = {name: _version(name) for name in (*PACKAGES, *OPTIONAL)}
    for title, names in (("packages", PACKAGES), ("optional", tuple(OPTIONAL))):
        found.fact(title, ", ".join(f"{name}{KEPT_TOGETHER}{here[name] or 'missing'}" for name in names))
    for name, installed in here.items():
        needed = name not in OPTIONAL or _is_needed(name, request)
        what = OPTIONAL[name].what if name in OPTIONAL else "every run"
        if installed is None:
            remedy = OPTIONAL[name].remedy if name in OPTIONAL else f"pip install {name}, or reinstall rapidun"
            found.problem(what, f"the package {name} is not installed", remedy, needed=needed)
        elif name in ranges and not ranges[name].contains(installed, prereleases=True):
            found.problem(
                what, f"{name} {installed} is not what rapidun was made for ({name}{ranges[name]})",
                f"pip install '{name}{ranges[name]}'", needed=needed,
            )  # fmt: skip
    return found


def _is_needed(name: str, request: Request) -> bool:
    """Whether the configuration needs this optional package."""
    if name == "optuna":
        return request.tuned
    if name == "gguf":
        return request.any(lambda cfg: str(cfg.model.path).endswith(".gguf"))
    if name == "bm25s":
        return request.any(lambda cfg: cfg.influence.method.name == "bm25")
    if name == "lm-eval":
        return request.any(lambda cfg: bool(cfg.evaluation.lm_eval.tasks))
    kinds = {kind.name: kind for kind in TrackerKind}
    return name in kinds and request.any(lambda cfg: cfg.tracking.kind is kinds[name])


def _ranges() -> dict[str, SpecifierSet]:
    """Package -> the versions that rapidun asks for; empty in a checkout that was never installed."""
    try:
        lines = requires("rapidun") or []
    except PackageNotFoundError:
        return {}
    found = (Requirement(line) for line in lines)
    return {requirement.name: requirement.specifier for requirement in found}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
