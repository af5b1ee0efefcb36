"""Files of a dataset on the Hugging Face hub, by an explicit prefix: hf://datasets/OWNER/NAME[@REVISION][/FILE].

The file is downloaded and read by our own readers: no loading script is ever fetched, none is ever run.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from rapidun.base.errors import DataError
from rapidun.base.text import short_message
from rapidun.stages.rows.formats.words import listed

_ADDRESS = re.compile(r"hf://datasets/(?P<repo>[\w.\-]+/[\w.\-]+)(?:@(?P<revision>[^/\s]+))?(?:/(?P<file>.+))?")


class Address(NamedTuple):
    repo: str
    revision: str | None
    file: str | None


def is_hub(name: str) -> bool:
    return name.startswith("hf:/")


def address(name: str) -> str:
    """A path that was an address has lost one of its slashes."""
    return name if name.startswith("hf://") else f"hf://{name.removeprefix('hf:/')}"


def parse(name: str) -> Address:
    """Raises: DataError for what is no such address."""
    found = _ADDRESS.fullmatch(name)
    if found is None or ".." in (found["file"] or "").split("/"):
        raise DataError(
            f"{name}: need hf://datasets/OWNER/NAME/FILE, a file of a dataset on the hub (with a revision: "
            "OWNER/NAME@REVISION)"
        )
    return Address(found["repo"], found["revision"], found["file"])


@cache
def fetch(name: str, endings: tuple[str, ...]) -> Path:
    """The local copy of the file, from the hub's cache or the hub.

    An address without FILE means the only file of rows that the repository has.

    Args: endings: of names that are files of rows.
    Raises: DataError where there is no such file, none or several to choose from, or no way to the hub.
    """
    from huggingface_hub import HfApi, hf_hub_download  # slow to import
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repo, revision, file = parse(name)
    try:
        if file is None:
            held = HfApi().list_repo_files(repo, repo_type="dataset", revision=revision)
            file = _only(name, [one for one in held if one.lower().endswith(endings)])
        place = hf_hub_download(repo, file, repo_type="dataset", revision=revision)
    except LocalEntryNotFoundError as error:
        raise DataError(
            f"{name}: need the file in the hub's cache, or a way to the hub, got neither ({short_message(error)}). "
            "Download it where there is a network"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise DataError(
            f"{name}: need a file of a dataset that the hub gives out, got: {short_message(error)}"
        ) from None
    return Path(place)


def _only(name: str, files: Sequence[str]) -> str:
    if len(files) == 1:
        return files[0]
    raise DataError(
        f"{name}: need the name of a file behind it, got a dataset with {len(files) or 'no'} files of rows"
        + (f" ({listed(sorted(files))})" if files else "")
    )
