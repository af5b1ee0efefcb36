"""Reads a configuration that somebody else wrote: plain YAML, every value with its line; nothing in it is executed.

Refused are tags that would make objects, anchors and aliases (a short file of them can stand for gigabytes), keys that
stand twice, and files that are too large to be settings.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rapidun.base.errors import ConfigError
from rapidun.base.text import short_message

MAX_BYTES = 1 << 20


class Setting(NamedTuple):
    """A value with its key (dots between its parts) and the file and line it stands in."""

    key: str
    value: Any
    place: str


class _Refused(Exception):
    """What is wrong, with the line in front of it."""


class _Loader(yaml.SafeLoader):
    """As PyYAML reads, but for numbers to the base of 60: `mix_ratio: 3:1` is the text 3:1, not 181."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _Refused(
                f"{event.start_mark.line + 1}: need values written out, got an anchor or alias. Write it out"
            )
        return super().compose_node(parent, index)

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)
        is_number = tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        return self.DEFAULT_SCALAR_TAG if is_number and ":" in value else tag


def read_settings(path: Path) -> list[Setting]:
    """Every value of the file, in its order; a list counts as one value, and so does an empty section.

    Raises: ConfigError for a file that cannot be read or is no such YAML.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(f"{path}: need a configuration of at most {MAX_BYTES:,} bytes, got {size:,}")
        loader = _Loader(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: need a readable YAML file, got: {error.strerror or error}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: need UTF-8 text, got what cannot be read ({short_message(error)})") from None
    try:
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise _Refused("1: need sections with keys, got something else")
        return list(_walk(loader, root, "", str(path)))
    except _Refused as error:
        raise ConfigError(f"{path}:{error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{line}: need plain YAML, got: {error.problem or error.context}. Mend it") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: need plain YAML, got: {short_message(error)}. Mend it") from None
    except RecursionError:
        raise ConfigError(f"{path}: need a configuration, got YAML that is nested too deeply") from None
    finally:
        loader.dispose()


def _walk(loader: _Loader, node: yaml.MappingNode, prefix: str, path: str) -> Iterator[Setting]:
    seen: dict[str, int] = {}
    for name, value in node.value:
        line = name.start_mark.line + 1
        if not isinstance(name, yaml.ScalarNode):
            raise _Refused(f"{line}: need a name for a key, got a list or a section. Mend it")
        key = f"{prefix}{name.value}"
        if key in seen:
            raise _Refused(f"{line}: need every key once, got {key} again (first on line {seen[key]}). Delete one")
        seen[key] = line
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _walk(loader, value, f"{key}.", path)
        else:
            yield Setting(key, loader.construct_object(value, deep=True), f"{path}:{line}")
