"""What the configuration reads: the model's folder, hub id or file, the pack, weights and scores made elsewhere."""

import os
import re
from pathlib import Path

from rapidun.base.errors import RapidunError
from rapidun.base.text import short_message
from rapidun.cli.doctor.findings import Findings, bounded
from rapidun.cli.doctor.machine import GIB, memory
from rapidun.cli.doctor.request import Request
from rapidun.config.data import Source
from rapidun.config.run import RunConfig
from rapidun.models.load import SMALL_FILES, WEIGHT_FILES
from rapidun.pipeline.check import run_faults
from rapidun.stages.context import Memo
from rapidun.stages.data.files import find_files, named_on_hub, read_pack
from rapidun.stages.rows.keywords import read_keywords
from rapidun.stages.rows.spelling import Spelling

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# seconds that the hub has to answer
PATIENCE = 5.0
MAGIC = b"GGUF"
# bytes of a weight in memory against two on disk
SHARE = {"none": 1.0, "8bit": 0.5, "4bit": 0.3}


def look_at_inputs(request: Request) -> Findings:
    """Models, packs and files of the configuration; of a sweep all different ones."""
    found = Findings()
    for fault in request.faults:
        found.problem("this command line", fault, "correct it; what stands here is about the defaults", needed=True)
    for cfg in request.distinct(lambda cfg: (cfg.model.path, cfg.model.revision, cfg.model.quantisation)):
        _model(found, cfg)
    for cfg in request.distinct(lambda cfg: cfg.data):
        _pack(found, cfg)
    memo = Memo()
    for cfg in request.cfgs:
        _rest(found, cfg, memo)
    return found


def _model(found: Findings, cfg: RunConfig) -> None:
    path = cfg.model.path
    if path is None:
        found.fact("model", f"{cfg.model.name}: made from scratch")
    elif path.endswith(".gguf"):
        _gguf(found, Path(path).expanduser())
    elif Path(path).expanduser().is_dir():
        _folder(found, cfg, Path(path).expanduser())
    elif path.startswith(("/", ".", "~")) or not HUB_ID.fullmatch(path):
        found.fact("model", f"{path}: not there")
        found.problem(
            f"model.path={path}", "no such folder or file", "pass model.path=DIR, a hub id or a .gguf", needed=True
        )
    else:
        limit = 3 * PATIENCE
        answer = bounded(lambda: _hub(path, cfg.model.revision), title=f"hub: {path}", seconds=limit)
        found.facts += answer.facts
        for problem in answer.problems:
            found.problem(f"model.path={path}", problem.why, problem.remedy, needed=True)


def _gguf(found: Findings, path: Path) -> None:
    try:
        with path.open("rb") as file:
            good = file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        good = False
        why = error.strerror or short_message(error)
    else:
        why = "not a GGUF file (it does not begin with GGUF)"
    found.fact("model", f"{path}: {'a GGUF file' if good else why}")
    if not good:
        found.problem(f"model.path={path}", why, "pass another model.path=FILE.gguf", needed=True)


def _folder(found: Findings, cfg: RunConfig, folder: Path) -> None:
    weights = sorted(folder.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in weights)
    found.fact("model", f"{folder}: {size / GIB:.2f} GiB of weights in {len(weights)} files")
    lacking = [] if (folder / "config.json").is_file() else ["config.json"]
    lacking += [] if weights else ["*.safetensors"]
    names = ("tokenizer.json", "tokenizer.model", "vocab.json")
    lacking += [] if any((folder / name).is_file() for name in names) else ["tokenizer.json"]
    if lacking:
        why = f"the folder lacks {', '.join(lacking)}"
        found.problem(f"model.path={folder}", why, "pass the folder of a causal LM in safetensors", needed=True)
    unreadable = [file.name for file in weights if not os.access(file, os.R_OK)]
    if unreadable:
        why = f"cannot be read: {', '.join(unreadable)}"
        found.problem(f"model.path={folder}", why, "mend the permissions", needed=True)
    total, _ = memory()
    needed = size * SHARE[cfg.model.quantisation.name]
    if total and needed > total:
        found.problem(
            f"model.path={folder} on the CPU", f"its weights alone take {needed / GIB:.1f} GiB of "
            f"{total / GIB:.1f} GiB memory", "use a GPU that holds them, or model.quantisation=4bit",
        )  # fmt: skip


def _hub(name: str, revision: str | None) -> Findings:
    """Whether a hub id is in the local cache, else whether the hub has it and answers."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    found = Findings()
    patterns = [*WEIGHT_FILES, *SMALL_FILES]
    try:
        place = snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=True)
        if any(Path(place).glob("*.safetensors")):
            found.fact("model", f"{name}: in the hub's cache ({place})")
            return found
    except (LocalEntryNotFoundError, OSError, ValueError):
        place = ""  # not in the cache
    fetch = "pass model.path=DIR, or fetch it where there is a network"
    if constants.HF_HUB_OFFLINE:
        found.fact("model", f"{name}: not in the cache, and HF_HUB_OFFLINE is set")
        found.problem("model", "not in the local cache, and HF_HUB_OFFLINE forbids to ask the hub", fetch)
        return found
    try:
        HfApi().model_info(name, revision=revision, timeout=PATIENCE)
    except GatedRepoError:
        why = "the hub wants its licence accepted and a token"
        found.problem("model", why, "accept it on the model's page, then `hf auth login` or HF_TOKEN")
    except RepositoryNotFoundError:
        found.problem("model", "no folder of this name, and the hub knows no such model", "correct model.path")
    except HfHubHTTPError as error:
        found.problem("model", f"the hub refuses ({short_message(error)})", fetch)
    except Exception as error:  # the errors of its HTTP library, which changes between releases
        found.problem("model", f"not in the cache, and the hub does not answer ({short_message(error)})", fetch)
    found.fact("model", f"{name}: {found.problems[0].why if found.problems else 'the hub has it, to be downloaded'}")
    return found


def _pack(found: Findings, cfg: RunConfig) -> None:
    """Read every row of the pack, as the data stage would."""
    if cfg.data.source is Source.builtin:
        found.fact("pack", "built in")
        return
    where = cfg.data.dir or cfg.data.forget
    if named_on_hub(cfg.data):
        found.fact("pack", f"{where}: a file on the hub, fetched when the run needs it")
        return
    try:
        spelling = Spelling.of(cfg.data.fields, cfg.data.multi_turn)
        rows = {split: len(rows) for split, rows in read_pack(find_files(cfg.data), spelling).pack.items()}
        if cfg.data.keywords:
            read_keywords(Path(cfg.data.keywords).expanduser())
    except (RapidunError, OSError, UnicodeError) as error:
        found.fact("pack", f"{where}: cannot be used")
        found.problem(f"data={cfg.data.name}", short_message(error), "rapidun pack check DIR says more", needed=True)
        return
    found.fact("pack", f"{where}: {', '.join(f'{split} {count}' for split, count in rows.items())}")


def _rest(found: Findings, cfg: RunConfig, memo: Memo) -> None:
    """What else a run would be refused for; device, packages and places have sections of their own."""
    # of these more is said above
    told = {problem.what.split("=")[0].split(".")[0] for problem in found.problems if problem.needed}
    for fault in run_faults(cfg, memo=memo, here=False, fetch=False):
        what, _, why = fault.partition(": ")
        if what.split(".")[0] not in told & {"model", "data"} and what not in ("store_dir", "run_dir"):
            found.problem(what, why, "a run is refused for it", needed=True)
