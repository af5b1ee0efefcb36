"""Several worker processes of one machine: the same command, run several times at once."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

# what the console script does
RUN = "import sys; from rapidun.cli.main import main; sys.exit(main(sys.argv[1:]))"
POLL_SECONDS = 0.2


def run_workers(argv: Sequence[str], *, count: int, num_gpus: int, on_poll: Callable[[], None]) -> list[str]:
    """Run `rapidun` with these words in `count` processes, one GPU each where there are any, and wait for all.

    Returns: what those that failed said, each message once; empty if all went well.
    """
    processes: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
    with _passing_on_sigterm():
        try:
            for number in range(count):
                # closed below; a pipe would fill up
                errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
                command = [sys.executable, "-c", RUN, *argv]
                environment = _environment(number, num_gpus)
                processes.append(
                    (subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment), errors)
                )
            for process, _ in processes:
                while True:
                    try:
                        process.wait(timeout=POLL_SECONDS)
                        break
                    except subprocess.TimeoutExpired:
                        on_poll()
            failed = [pair for pair in processes if pair[0].returncode != 0]
            # what the user can mend first
            failed.sort(key=lambda pair: pair[0].returncode != 2)
            return list(dict.fromkeys(_message(*pair) for pair in failed))
        finally:
            for process, errors in processes:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
                errors.close()


def _environment(number: int, num_gpus: int) -> dict[str, str]:
    environment = dict(os.environ)
    # a checkout that is not installed
    root = str(Path(__file__).parents[4])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    if num_gpus > 1:
        visible = (environment.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(num_gpus)))).split(",")
        environment["CUDA_VISIBLE_DEVICES"] = visible[number % len(visible)]
    return environment


def _message(process: subprocess.Popen[bytes], errors: IO[bytes]) -> str:
    if process.returncode < 0:
        return f"a worker was ended by {signal.Signals(-process.returncode).name}"
    errors.seek(0)
    text = errors.read().decode(errors="replace").strip()
    if process.returncode == 2:
        # the one message, without the program's name before it
        return text.removeprefix("rapidun: ")
    return f"a worker failed with status {process.returncode}:\n{text}"


@contextmanager
def _passing_on_sigterm() -> Iterator[None]:
    """Leave through the caller's `finally` when asked to end, so that no worker stays behind."""

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
