"""One process's attempt at an artifact: two folders that carry its token, and their way into the store.

Another process may take over at any moment: it moves this one's folders away. This process then finds them gone, or,
if it was suspended and its code makes folders anew, not the ones it made; in either case its result is thrown away.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from rapidun.base.files import sync
from rapidun.base.locks import Lease, new_token
from rapidun.base.parts import sweep_parts


class Claim:
    """The right to make one artifact, as long as `intact()`; a context manager that gives the lease back."""

    def __init__(self, folder: Path, name: str, lease: Lease) -> None:
        self.folder = folder
        self.name = name
        self.lease = lease
        self.token = new_token()
        self.out = folder / f"{name}.{self.token}.part"
        self.work = folder / f"{name}.{self.token}.work"
        # kept open, so that the inode numbers cannot be given to other folders
        self._open: dict[Path, int] = {}

    def open(self) -> None:
        """Make the folders; adopt the newest checkpoints of a holder that is gone, and remove what else it left."""
        for path in self.folder.glob(f"{self.name}.*.part"):
            remove_folder(path)
        # `<name>.work`, of earlier versions, sorts before those with a token
        left = sorted(self.folder.glob(f"{self.name}.*work"), key=lambda path: path.name.removesuffix("work"))
        while left and not self.work.is_dir():
            try:
                # a token is as old as its claim, and every adoption gives a new one: the newest has all that was done
                os.rename(left.pop(), self.work)
            except FileNotFoundError:
                continue  # its holder was alive, and is done with it
        for path in left:
            remove_folder(path)
        self.work.mkdir(exist_ok=True)
        # whoever wrote here holds the lease no more
        sweep_parts(self.work)
        self.out.mkdir()
        for path in (self.out, self.work):
            self._open[path] = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def intact(self) -> bool:
        """Whether both folders are still those that `open` made: nobody has taken over."""
        return all(_is_folder(path, handle) for path, handle in self._open.items())

    def publish(self) -> bool:
        """Rename what was made into its place; False if another has done so, and ours is thrown away.

        Raises: FileNotFoundError if another process has taken over, so that what is here may not be whole.
        """
        if not self.intact():
            raise FileNotFoundError(f"{self.out}: another process has taken over")
        target = self.folder / self.name
        if target.is_dir() and not (target / "manifest.json").is_file():
            remove_folder(target)  # no artifact: half deleted by hand
        try:
            os.rename(self.out, target)
        except OSError:
            if not (target / "manifest.json").is_file():
                raise
            self.discard()
            return False
        sync(self.folder)
        with suppress(OSError):  # what is published is published; prune removes what is left beside it
            remove_folder(self.work)
        return True

    def discard(self) -> None:
        """Remove what was made, and the work folder if nothing is in it or the artifact is there.

        It is there where a signal ends the process behind the publication.
        """
        published = (self.folder / self.name / "manifest.json").is_file()
        for path in (self.out, self.work):
            handle = self._open.get(path)
            ours = handle is not None and _is_folder(path, handle)
            # a work folder that our code made anew has lost its beginning
            if path.is_dir() and (published or path == self.out or not ours or not any(path.iterdir())):
                remove_folder(path)

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._open.values():
            os.close(handle)
        self._open.clear()
        self.lease.release()


def _is_folder(path: Path, handle: int) -> bool:
    """Whether `path` leads to the folder that `handle` has open; no where a shared filesystem has forgotten it."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except OSError:
        return False


def remove_folder(path: Path) -> None:
    """Remove a folder such that nobody ever meets half of it: renamed first, which one of several removers does."""
    stem, _, _ = path.name.partition(".")
    gone = path if path.suffix == ".gone" else path.with_name(f"{stem}.{new_token()}.gone")
    try:
        os.rename(path, gone)
    except FileNotFoundError:
        return
    # a file that another process has open may stay for a while on NFS; prune removes what is left
    shutil.rmtree(gone, ignore_errors=True)
