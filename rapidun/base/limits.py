"""What the machine refuses, in whose words ever: one message with the place, what was needed, and what to do.

A full disk, a used-up quota, too long a name, a read-only or broken disk, too many open files or processes, no memory.
Libraries say these in ways of their own: "unexpected pos 187648 vs 187540" is torch on a full disk.
"""

import errno
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rapidun.base.errors import MachineError, RapidunError
from rapidun.base.files import existing, writing
from rapidun.base.machine import available_memory
from rapidun.base.parts import target_of
from rapidun.base.text import byte_size, one_line

# a file that is cut short, without a word about why
SHORT = -1
WORDS = (
    (r"no space left on device|\bos error 28\b", errno.ENOSPC),
    (r"disk quota exceeded|\bos error 122\b", errno.EDQUOT),
    (r"file too large|\bos error 27\b", errno.EFBIG),
    (r"file name too long|\bos error 36\b", errno.ENAMETOOLONG),
    (r"read-only file system|\bos error 30\b", errno.EROFS),
    (r"too many open files|\bos error 24\b", errno.EMFILE),
    (r"input/output error|\bos error 5\b", errno.EIO),
    (r"can(no|')t allocate memory|unable to allocate|\bos error 12\b|std::bad_alloc", errno.ENOMEM),
    (r"can't start new thread|resource temporarily unavailable|\bos error 11\b", errno.EAGAIN),
    (r"basic_ios::clear|unexpected pos \d+ vs \d+|\d+ requested and -?\d+ written|file write failed", SHORT),
)
# of an error of ours that was raised because of one of these: its own words would lead astray
BEHIND = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# with less room than this a disk counts as full
LITTLE = 1 << 20
LONGEST_NAME, LONGEST_PATH = 255, 4095


def refusal(error: BaseException, places: Mapping[str, Path] | None = None) -> MachineError | None:
    """The machine's refusal behind an exception, told in one line; None where there is none.

    Args:
        places: setting (`run_dir`) -> folder that it names, to say what could be changed.
    """
    if isinstance(error, MachineError):
        return error
    found = _find(error)
    if found is None:
        return None
    number, culprit = found
    path, asked = _place(error, culprit)
    told = MachineError(one_line(TOLD[number](_Case(number, path, asked, dict(places or {}), culprit))))
    told.__cause__ = error
    return told


@contextmanager
def refusing(places: Mapping[str, Path] | None = None, *, into: Path | None = None) -> Iterator[None]:
    """Raise the machine's refusals from within as such.

    Args: places: as of `refusal`. into: what is written to, where nobody knows better.
    Raises: MachineError.
    """
    try:
        with nullcontext() if into is None else writing(into):
            yield
    except Exception as error:
        told = refusal(error, places)
        if told is None or told is error:
            raise
        raise told from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that it was raised from."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)


def _find(error: BaseException) -> tuple[int, BaseException] | None:
    by_words = None
    for at in _chain(error):
        if isinstance(at, MachineError):
            return None
        number = at.errno if isinstance(at, OSError) else errno.ENOMEM if isinstance(at, MemoryError) else None
        number = {errno.EPERM: errno.EACCES, errno.ENFILE: errno.EMFILE}.get(number or 0, number)
        if number == errno.EACCES and getattr(at, "filename", None) is None:
            continue
        if number in TOLD and (not isinstance(error, RapidunError) or number in BEHIND):
            return int(number or 0), at
        if by_words is None and not isinstance(error, RapidunError) and not isinstance(at, KeyError):
            text = str(at)[:2000].lower()
            known = (known for words, known in WORDS if re.search(words, text))
            by_words = next(((number, at) for number in known), None)
    return by_words


def _place(error: BaseException, culprit: BaseException) -> tuple[Path | None, int | None]:
    """The file that was to be written and its bytes, as far as they are known."""
    noted = (getattr(at, "rapidun_writing", None) for at in _chain(error))
    path, asked = next(filter(None, noted), (None, None))
    # of two names (rename, symlink) the second is the new one
    name = getattr(culprit, "filename2", None) or getattr(culprit, "filename", None)
    if isinstance(name, str | bytes) and name:
        path = Path(os.fsdecode(name))
    # of an atomic write the name that it was to have
    path = path and target_of(path)
    if asked is None and (match := re.search(r"tried to allocate (\d+) bytes", str(culprit))):
        asked = int(match[1])
    return path, asked


class _Case:
    """One refusal: `path` and `asked` (bytes) are None where nobody knows them."""

    def __init__(
        self, number: int, path: Path | None, asked: int | None, places: dict[str, Path], culprit: BaseException
    ) -> None:
        self.number, self.asked, self.culprit = number, asked, culprit
        self.key, self.path = self._setting(path, places)

    def _setting(self, path: Path | None, places: dict[str, Path]) -> tuple[str, Path | None]:
        """The setting whose folder `path` stands in; without a path the folder that has least room."""
        if path is not None:
            above = [path.absolute(), *path.absolute().parents]
            return next((key for key, place in places.items() if place.absolute() in above), ""), path
        # the setting comes before the folder of temporary files
        places = {**places, "TMPDIR": Path(tempfile.gettempdir())}
        free = {key: _free(place) for key, place in places.items()}
        key = min(free, key=lambda key: free[key])
        return (key, places[key]) if free[key] < LITTLE else ("", None)

    @property
    def shown(self) -> str:
        text = "a file" if self.path is None else str(self.path)
        return text if len(text) <= 300 else f"{text[:120]}...{text[-60:]}"

    @property
    def what(self) -> str:
        return self.shown if self.asked is None else f"{byte_size(self.asked)} in {self.shown}"

    def setting(self, otherwise: str) -> str:
        return self.key or otherwise

    def elsewhere(self) -> str:
        if self.key == "TMPDIR":
            return ", or set TMPDIR=DIR in the environment"
        return f", or pass {self.key}=... on another disk" if self.key else ""


def _free(place: Path) -> int:
    """Bytes that this user may still write there."""
    return shutil.disk_usage(existing(place)).free


GO_ON = "; the same command then goes on with what is missing"


def _full(case: _Case) -> str:
    if case.path is None:
        return (
            f"disk: need room for a file somewhere, got a full disk ({one_line(str(case.culprit))[:120]}) while the "
            "folders of this run have room. Look at where the output and the temporary files go"
        )
    place = existing(case.path)
    system = os.statvfs(place)
    free = "no more files (inodes)" if system.f_files and not system.f_favail else f"{byte_size(_free(place))} free"
    return (
        f"{case.setting('disk')}: need room for {case.what}, got {free} (No space left on device). "
        f"Make room (rapidun store prune){case.elsewhere()}{GO_ON}"
    )


def _quota(case: _Case) -> str:
    return (
        f"{case.setting('disk')}: need room for {case.what}, got a used-up quota (Disk quota exceeded). "
        f"Make room (rapidun store prune){case.elsewhere()}{GO_ON}"
    )


def _large(case: _Case) -> str:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    most = "no limit of this shell" if limit == resource.RLIM_INFINITY else f"a limit of {byte_size(limit)} a file"
    return (
        f"{case.setting('disk')}: need room for {case.what}, got {most} (File too large). "
        f"Raise it (ulimit -f unlimited){case.elsewhere()}{GO_ON}"
    )


def _long(case: _Case) -> str:
    name = max(case.path.parts, key=lambda part: len(os.fsencode(part))) if case.path else ""
    got = (
        f"{len(os.fsencode(name))} in {name[:40]}... and {len(os.fsencode(case.path))} in all" if case.path else "more"
    )
    mend = f"a shorter {case.key}=..." if case.key else "shorter names (run_dir, store_dir, name, sweep.name)"
    return (
        f"{case.setting('name')}: need names of at most {LONGEST_NAME} bytes and paths of at most {LONGEST_PATH}, got "
        f"{got} (File name too long). Pass {mend}"
    )


def _read_only(case: _Case) -> str:
    why = {errno.EROFS: "Read-only file system", errno.EACCES: "Permission denied"}[case.number]
    mend = f"Pass {case.key}=..." if case.key else "Choose another one, or change that"
    what = "a folder that can be written" if case.number == errno.EROFS or case.key else "access"
    return f"{case.setting('folder')}: need {what}, got {case.shown} ({why}). {mend}"


def _broken(case: _Case) -> str:
    return (
        f"{case.setting('disk')}: need a disk that can be read and written, got an input/output error at {case.shown}. "
        "The disk, or the network behind it, fails: look at the system's log"
    )


def _files(case: _Case) -> str:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return f"open files: need more than {limit} at once, got that limit (Too many open files). Run ulimit -n 4096 first"


def _memory(case: _Case) -> str:
    what = f"{byte_size(case.asked)} more" if case.asked is not None else "more"
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    bound = "" if limit == resource.RLIM_INFINITY else f" under a limit of {byte_size(limit)} (ulimit -v)"
    free = available_memory()
    got = "none" if free is None else f"{byte_size(free)} available"
    return (
        f"memory: need {what}, got {got}{bound} ({one_line(str(case.culprit))[:120] or 'MemoryError'}). Take a smaller "
        "model, smaller batches or fewer rows, or run where there is more"
    )


def _processes(case: _Case) -> str:
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        # a thread's stack that finds no room is refused with the same words
        return _memory(case)
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    most = "" if limit == resource.RLIM_INFINITY else f" of {limit}"
    return (
        f"processes: need one more process or thread, got a limit{most} (ulimit -u, or that of a container). Raise it, "
        "or run fewer at once"
    )


TOLD: dict[int | None, Callable[[_Case], str]] = {
    errno.ENOSPC: _full,
    SHORT: _full,
    errno.EDQUOT: _quota,
    errno.EFBIG: _large,
    errno.ENAMETOOLONG: _long,
    errno.EROFS: _read_only,
    errno.EACCES: _read_only,
    errno.EIO: _broken,
    errno.EMFILE: _files,
    errno.ENOMEM: _memory,
    errno.EAGAIN: _processes,
}
