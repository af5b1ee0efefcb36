"""The errors a user can cause: each message says what was expected, what came, where to change it.

The command line prints them without a traceback and exits with status 2.
"""

from collections.abc import Sequence


class RapidunError(Exception):
    """Base of every error that the user can mend."""

    # what was run before it and is kept, in words; empty where nothing was
    ran = ""


class ConfigError(RapidunError):
    """The configuration is wrong; carries every fault that was found, not only the first."""

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        super().__init__("\n".join(self.faults))

    def __reduce__(self) -> tuple[type, tuple[list[str]]]:
        return (type(self), (self.faults,))


class DataError(RapidunError):
    """An input file is wrong: a pack, a weights file, an influence file."""


class ModelError(RapidunError):
    """A model or an adapter cannot be found, read or used."""


class MachineError(RapidunError):
    """The machine refuses: no room, no memory, too long a name; settings and inputs are right (base/limits.py)."""


class ArtifactError(RapidunError):
    """A stored artifact is missing, damaged, or was made by other settings than those asked for."""
