"""Hidden settings, known again: hidden.json holds a salted digest of each, for its owner alone (mode 0600).

Another value in the same run folder is then named, and neither is told. Whoever may read the file can try guesses.
"""

import hashlib
import json
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rapidun.base.files import UNREADABLE, write_json
from rapidun.base.nested import at, differences

FILE = "hidden.json"
# of PBKDF2: about ten milliseconds for each hidden value
ROUNDS = 20_000


def note_hidden(
    folder: Path, config: Mapping[str, Any], shown: Mapping[str, Any], *, but: Collection[str] = ()
) -> None:
    """Write hidden.json for what `shown` hides of `config`; without anything hidden there is none.

    Args: but: groups of settings that are never compared.
    """
    hidden = [key for key, _, _ in differences(config, shown) if key.split(".")[0] not in but]
    path = folder / FILE
    if not hidden:
        path.unlink(missing_ok=True)
        return
    salt = secrets.token_hex(16)
    digests = {key: _digest(at(config, key), salt) for key in hidden}
    write_json(path, {"salt": salt, "digests": digests}, private=True)


def other_hidden(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """The settings whose value was hidden in this folder and is another one now; of a damaged file nothing is known."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, *UNREADABLE):
        return []
    salt, digests = at(found, "salt"), at(found, "digests")
    if not isinstance(salt, str) or not isinstance(digests, dict):
        return []
    return [key for key, digest in digests.items() if _digest(at(config, key), salt) != digest]


def _digest(value: Any, salt: str) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.pbkdf2_hmac("sha256", text.encode(), salt.encode(), ROUNDS).hex()
