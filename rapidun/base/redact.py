"""Keeps secrets out of what leaves the machine: values of secret environment variables, passwords in addresses."""

import os
import re
from typing import Any

HIDDEN = "(hidden)"
# whose values are secrets, among environment variables and among settings
SECRET_NAME = re.compile(r"(^|_)(api_?key|key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)
# https://user:password@host, https://token@host
USER_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+@")
# WANDB_API_KEY=..., HF_TOKEN: ...; what comes before, the value with its quotes
SECRET_ENTRY = re.compile(
    r"""((?<![a-z0-9_])(?:[a-z0-9]+_)*(?:api_?key|key|token|secret|password|passwd|credentials?)["']?\s*[=:]\s*)"""
    r"""("[^"\n]*"|'[^'\n]*'|[^\s,}\])"'&]+)""",
    re.IGNORECASE,
)
# shorter values are words that may well stand in a text for another reason
MIN_LENGTH = 8


def hide(value: Any) -> Any:
    """The same value (text, list, dict, number) without secrets.

    Hidden: the values of environment variables whose name says secret, users and passwords in addresses, text under
    a key whose name says secret, and every value below a key `environment`.
    """
    return _hide(value, _secret_values())


def hide_entries(text: str) -> str:
    """A command, an override or YAML without the values of names that say secret, and without those of `hide`."""
    return str(hide(SECRET_ENTRY.sub(lambda found: found[1] + HIDDEN, text)))


def _hide(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, HIDDEN)
        return USER_IN_ADDRESS.sub("", value)
    if isinstance(value, dict):
        return {key: _hide_entry(str(key), item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hide(item, secrets) for item in value]
    return value


def _hide_entry(key: str, value: Any, secrets: list[str]) -> Any:
    if key == "environment" and isinstance(value, dict):
        return dict.fromkeys(value, HIDDEN)
    if isinstance(value, str) and SECRET_NAME.search(key):
        return HIDDEN
    return _hide(value, secrets)


def _secret_values() -> list[str]:
    """Longest first, so that a secret within a longer one leaves nothing over."""
    found = {
        value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value.strip()) >= MIN_LENGTH
    }
    return sorted(found, key=len, reverse=True)
