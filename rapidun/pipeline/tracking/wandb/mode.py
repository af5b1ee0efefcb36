"""Online or offline: whether W&B has a key here and its server answers. Looks, never asks, never waits long."""

import netrc
import os
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

# seconds that a server has to answer, and for which "it does not" is believed without asking again
PATIENCE = 4.0
REMEMBERED = 300.0
# the public service has two names for one host
PUBLIC_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")

_silent_since: dict[str, float] = {}


class Connection(NamedTuple):
    """What to pass to wandb.init. `warning` says why a run that was to be online is not; empty where all is well."""

    mode: str  # online | offline | disabled
    base_url: str
    warning: str = ""


def choose_connection(asked: str) -> Connection:
    """Decide between online and offline.

    Args: asked: auto | online | offline. WANDB_MODE in the environment decides where `asked` is auto.
    """
    base_url = server_address()
    if asked == "auto":
        asked = {"dryrun": "offline", "run": "online"}.get(os.environ.get("WANDB_MODE", ""), "") or os.environ.get(
            "WANDB_MODE", "auto"
        )
    if asked in ("offline", "disabled"):
        return Connection(asked, base_url)
    if not has_key(base_url):
        why = "" if asked == "auto" else "tracking: W&B has no key here (wandb login, or WANDB_API_KEY): offline"
        return Connection("offline", base_url, why)
    if not answers(base_url):
        return Connection("offline", base_url, f"tracking: the W&B server {_host(base_url)} does not answer: offline")
    return Connection("online", base_url)


def server_address() -> str:
    """WANDB_BASE_URL, else what W&B's own settings say."""
    given = os.environ.get("WANDB_BASE_URL")
    if given:
        return given.rstrip("/")
    return str(_settings().base_url).rstrip("/")


def has_key(base_url: str) -> bool:
    """Whether a key is set in the environment, in .netrc or in W&B's settings; the key itself is not kept."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    hosts = {_host(base_url)}
    if hosts & set(PUBLIC_HOSTS):
        hosts |= set(PUBLIC_HOSTS)
    try:
        known = set(netrc.netrc(str(path)).hosts)
    except (OSError, netrc.NetrcParseError):
        known = set()
    return bool(hosts & known) or bool(_settings().api_key)


def answers(base_url: str) -> bool:
    """Whether anything speaks HTTP at this address within PATIENCE seconds, name resolution included."""
    if time.monotonic() - _silent_since.get(base_url, -REMEMBERED) < REMEMBERED:
        return False
    heard: list[bool] = []
    # a name server that does not answer blocks for longer than any timeout of urlopen's
    thread = threading.Thread(target=_ask, args=(base_url, heard), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if not heard:
        _silent_since[base_url] = time.monotonic()
        return False
    return True


def _ask(base_url: str, heard: list[bool]) -> None:
    try:
        with urlopen(Request(f"{base_url}/healthz", headers={"User-Agent": "rapidun"}), timeout=PATIENCE):
            heard.append(True)
    except HTTPError:
        heard.append(True)  # 404 is an answer
    except (OSError, ValueError):
        return


def _settings() -> Any:
    import wandb

    return wandb.setup().settings


def _host(base_url: str) -> str:
    # of host:port, not of user:password@host:port
    return urlsplit(base_url).netloc.rpartition("@")[2]
