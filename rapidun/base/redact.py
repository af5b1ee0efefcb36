"""Keeps secrets out of what others may read: run folders, pages, trackers, logs.

What is a secret: the value of an environment variable whose name says so; every value of `cluster.environment`,
whatever its name; text under a key whose name says so; tokens that their shape gives away; users and passwords in
addresses.
A file that must hold one to be of use (a job script) is written for its owner alone.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "(hidden)"
_WORD = r"(?:api_?key|key|token|secret|password|passwd|passphrase|pwd|credentials?|auth|pat|cookie)"
# whose values are secrets, among environment variables and among settings: HF_TOKEN, judge.api_key, accessToken
SECRET_NAME = re.compile(rf"(^|[_.\-])(?i:{_WORD})$|(?<=[a-z0-9])(Key|Token|Secret|Password|Credentials?)$")
# https://user:password@host, https://token@host
USER_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+@")
_VALUE = r"""("[^"\n]*"|'[^'\n]*'|[^\s,}\])"'&]+)"""
# WANDB_API_KEY=..., HF_TOKEN: ...; what comes before, the value with its quotes
SECRET_ENTRY = re.compile(
    rf"""((?<![a-z0-9_])(?:[a-z0-9]+_)*{_WORD}["']?\s*[=:]\s*){_VALUE}""",
    re.IGNORECASE,
)
# the same in a sentence, where `key: ...` and `token = ...` are words: with an underscore in the name
NAMED_ENTRY = re.compile(rf"((?<![A-Za-z0-9_])(?:[A-Za-z0-9]+_)+(?i:{_WORD})=){_VALUE}")
# cluster.environment.NAME=..., cluster.environment={NAME:...}
JOBS_ENTRY = re.compile(r"(cluster\.environment\.\w+['\"]?=)(\"[^\"\n]*\"|'[^'\n]*'|[^\s'\"]+)")
JOBS_DICT = re.compile(r"(cluster\.environment=\s*['\"]?\{)([^}\n]*)")
# `environment:` and what is indented below it
JOBS_YAML = re.compile(r"^([ \t]*)environment:[ \t]*(?:\{[^}\n]+\}[ \t]*|\n(?:\1[ \t]+\S.*(?:\n|$))+)", re.MULTILINE)
# what services give out
TOKENS = re.compile(
    r"""(?<![A-Za-z0-9_])(?:
        hf_[A-Za-z0-9]{8,} | api_org_[A-Za-z0-9]{8,}
        | sk-[A-Za-z0-9_\-]{16,} | wandb_v\d+_[A-Za-z0-9_]{16,}
        | gh[oprsu]_[A-Za-z0-9]{16,} | github_pat_[A-Za-z0-9_]{16,} | glpat-[A-Za-z0-9_\-]{16,}
        | (?:AKIA|ASIA)[A-Z0-9]{16} | xox[abeoprs]-[A-Za-z0-9\-]{10,} | AIza[A-Za-z0-9_\-]{30,}
        | eyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}
    )""",
    re.VERBOSE,
)
BEARER = re.compile(r"\b((?:bearer|basic)\s+)[A-Za-z0-9._~+/\-]{12,}=*", re.IGNORECASE)
PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
# W&B's older keys are 40 hexadecimal digits; so are the names of commits, which are told by what stands before them
HEX_KEY = re.compile(r"(?<![0-9A-Za-z/@_\-])[0-9a-f]{40}(?![0-9A-Za-z/_\-])")
COMMIT = re.compile(r"(?:commit|revision|sha|snapshots?|git|version|code|hash|\bref)\W{0,6}$", re.IGNORECASE)
# the working directory, in every shell's environment: paths, and no password
DIRECTORIES = ("PWD", "OLDPWD")
# lists of overrides as they were typed
TYPED = ("overrides", "task", "command")
# shorter values are words that may well stand in a text for another reason
MIN_LENGTH = 8

# values of cluster.environment in this process
_known: set[str] = set()


def keep_secret(environment: Mapping[str, str]) -> None:
    """From now on hide the values of these variables: those given, and those that this process has for them."""
    for name, value in environment.items():
        found = (str(value), os.environ.get(name, ""))
        _known.update(text for text in found if len(text.strip()) >= MIN_LENGTH and text != HIDDEN)


def hide(value: Any) -> Any:
    """The same value (text, list, dict, number) without secrets; for a sentence, an error, settings."""
    return _hide(value, _secret_values())


def hide_entries(text: str) -> str:
    """A command, an override or YAML without the values of names that say secret, and without those of `hide`."""
    text = SECRET_ENTRY.sub(_entry, text)
    text = JOBS_YAML.sub(lambda found: f"{found[1]}environment: {HIDDEN}" + "\n" * found[0].endswith("\n"), text)
    text = JOBS_DICT.sub(lambda found: found[1] + _hide_items(found[2]), text)
    text = JOBS_ENTRY.sub(lambda found: found[1] + HIDDEN, text)
    return str(hide(text))


def _entry(found: re.Match[str]) -> str:
    """`NAME=value` without the value; one that is hidden already stays as it is."""
    return found[0] if found[2].startswith(HIDDEN[:-1]) else found[1] + HIDDEN


def _hide_items(text: str) -> str:
    """`A:1,B:2` -> `A:(hidden),B:(hidden)`."""
    names = re.findall(r"(?:^|,)\s*['\"]?(\w+)['\"]?\s*:", text)
    return ",".join(f"{name}:{HIDDEN}" for name in names)


def _hide(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        return _hide_text(value, secrets)
    if isinstance(value, dict):
        return {key: _hide_entry(key, item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hide(item, secrets) for item in value]
    return value


def _hide_text(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    if len(text) < MIN_LENGTH:
        return text
    text = USER_IN_ADDRESS.sub("", text)
    text = PRIVATE_KEY.sub(HIDDEN, text)
    text = BEARER.sub(lambda found: found[1] + HIDDEN, text)
    text = TOKENS.sub(HIDDEN, text)
    text = NAMED_ENTRY.sub(_entry, text)
    return HEX_KEY.sub(
        lambda found: found[0] if COMMIT.search(text[max(0, found.start() - 20) : found.start()]) else HIDDEN, text
    )


def _hide_entry(key: Any, value: Any, secrets: list[str]) -> Any:
    name = str(key)
    if name == "environment" and isinstance(value, dict):
        return dict.fromkeys(value, HIDDEN)
    if name in TYPED and isinstance(value, list):
        return [hide_entries(item) if isinstance(item, str) else item for item in value]
    if isinstance(value, str) and (SECRET_NAME.search(name) or name.startswith("cluster.environment.")):
        return HIDDEN
    if isinstance(value, str) and COMMIT.search(name):
        # the name of a commit
        return value if re.fullmatch(r"[0-9a-f]{40}(-dirty)?", value) else _hide_text(value, secrets)
    return _hide(value, secrets)


def _secret_values() -> list[str]:
    """Longest first, so that a secret within a longer one leaves nothing over."""
    found = {
        value
        for name, value in os.environ.items()
        if SECRET_NAME.search(name) and name not in DIRECTORIES and len(value.strip()) >= MIN_LENGTH
    }
    return sorted(found | _known, key=len, reverse=True)
