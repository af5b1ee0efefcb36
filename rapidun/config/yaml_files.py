"""Config files are read by Hydra only after a look that costs little: plain YAML of a bounded size and depth.

Aliases would let a few lines stand for more than any memory holds, brackets in brackets end the interpreter's stack.
"""

from functools import lru_cache
from pathlib import Path

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult

MOST_BYTES = 1_000_000
MOST_NESTED = 50
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STARTS = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
_ENDS = (yaml.MappingEndEvent, yaml.SequenceEndEvent)


class PlainFileSource(FileConfigSource):
    """Hydra's own source of files, for those that `check_file` lets pass."""

    def load_config(self, config_path: str) -> ConfigResult:
        file = Path(self.path) / self._normalize_file_name(config_path)
        if file.is_file():
            state = file.stat()
            _check(file, state.st_size, state.st_mtime_ns)
        return super().load_config(config_path)


def use_plain_files() -> None:
    """Have Hydra read files through PlainFileSource, in this process."""
    # it registers its own sources first, and only once
    Plugins.instance()
    SourcesRegistry.instance().types[PlainFileSource.scheme()] = PlainFileSource


@lru_cache(maxsize=4096)
def _check(file: Path, size: int, changed: int) -> None:
    check_file(file)


def check_file(file: Path) -> None:
    """Whether a file is plain YAML.

    Raises: UnicodeDecodeError; yaml.YAMLError naming file and line for an anchor, an alias, more than MOST_BYTES or
        MOST_NESTED.
    """
    size = file.stat().st_size
    if size > MOST_BYTES:
        raise _fault(file, 0, f"need at most {MOST_BYTES:,} bytes, got {size:,}")
    # bytes of another encoding are said by whoever reads the file next
    text = file.read_text(encoding="utf-8")
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            line = event.start_mark.line
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise _fault(file, line, "need values written out, got an anchor (&) or an alias (*)")
            depth += isinstance(event, _STARTS) - isinstance(event, _ENDS)
            if depth > MOST_NESTED:
                raise _fault(file, line, f"need at most {MOST_NESTED} levels, got values that are nested deeper")
    except yaml.MarkedYAMLError as error:
        if error.problem_mark is None or error.problem_mark.name == str(file):
            raise
        raise _fault(file, error.problem_mark.line, str(error.problem or error.context)) from None
    except (RecursionError, yaml.reader.ReaderError) as error:
        raise _fault(file, 0, str(error).split("\n")[0] or "nested too deeply") from None


def _fault(file: Path, line: int, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=yaml.Mark(str(file), 0, line, 0, None, None))
