"""A process that has imported everything: it forks for each command, with a disk that fails or a kill (disk.c).

One JSON line on stdin for a command, one on stdout for what became of it. Started by tests/faults/conftest.py.
"""

import ctypes
import importlib
import json
import logging
import os
import resource
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

CODES = ctypes.CDLL(None, use_errno=True)


def work(asked: dict[str, Any], pipe: int) -> int:
    """The forked process: run one command line, say how many changes of the disk it made and what it imported."""
    os.chdir(asked["cwd"])
    for number, name in ((1, "out"), (2, "err")):
        handle = os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    sys.argv = ["rapidun", *asked["argv"]]
    from rapidun.cli.main import main

    if "NPROC" in asked["limits"]:
        become_another()
    for name, most in asked["limits"].items():
        if name == "AS":  # above what this process has already
            most += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    CODES.fault_arm(os.fsencode(asked["root"]), ctypes.c_long(asked["at"]), asked["mode"], asked["errno"])
    try:
        status = main(asked["argv"])
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    count = CODES.fault_count()
    CODES.fault_arm(b"", ctypes.c_long(0), 0, 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(pipe, json.dumps({"count": count, "modules": sorted(sys.modules)}).encode())
    return status


def become_another() -> None:
    """Another user than root, whom no limit of processes holds; every file stays readable and writable."""
    keep_capabilities, version, read_and_write = 8, 0x20080522, (1 << 1) | (1 << 3)  # DAC_OVERRIDE, FOWNER
    CODES.prctl(keep_capabilities, 1, 0, 0, 0)
    # a number that nobody has, so that its processes are those of this test
    os.setresuid(*[40_000 + os.getpid() % 20_000] * 3)
    header = (ctypes.c_uint32 * 2)(version, 0)
    kept = (ctypes.c_uint32 * 6)(read_and_write, read_and_write, 0, 0, 0, 0)
    if CODES.capset(header, kept):
        raise OSError(ctypes.get_errno(), "capset")


def serve() -> None:
    CODES.fault_count.restype = ctypes.c_long
    # what libraries print while they are imported must not come among the answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        ours, theirs = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(ours)
            os._exit(work(asked, theirs))
        os.close(theirs)
        with open(ours, "rb") as file:
            text = file.read()
        _, status = os.waitpid(process, 0)
        told = json.loads(text) if text else {"count": None, "modules": []}
        for name in told.pop("modules"):
            # what the first command imported late, the next ones need not
            if name not in sys.modules and not name.startswith("__"):
                with suppress(Exception):
                    importlib.import_module(name)
        told["status"] = os.waitstatus_to_exitcode(status)
        print(json.dumps(told), file=answers, flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    for name in ("torch", "transformers", "peft", "rapidun.cli.run", "rapidun.pipeline.run"):
        importlib.import_module(name)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    serve()
