"""Cores, memory and GPUs of this machine, and whether the configuration can use them as it wants to."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rapidun.base.text import last_line
from rapidun.cli.doctor.findings import Findings
from rapidun.cli.doctor.request import Request
from rapidun.config.model import Attention, Device, Dtype

# importing torch from a busy file server takes long
PROBE_S = 60.0
GIB = 2**30
CGROUP = Path("/sys/fs/cgroup")
LITTLE_MEMORY = 4 * GIB


class Probe:
    """Asks torch in another process while the rest is looked at."""

    def __init__(self) -> None:
        # -P: the folder of the file is no place to import from
        command = [sys.executable, "-P", str(Path(__file__).with_name("probe.py"))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def result(self, *, seconds: float = PROBE_S) -> dict[str, Any]:
        """`torch` and `quantisation` as probe.py prints them; what is missing has an `error` in its place."""
        try:
            out, err = self._process.communicate(timeout=seconds)
            why = f"asking it ended with status {self._process.returncode}: {last_line(err)}"
        except subprocess.TimeoutExpired:
            self._process.kill()
            out, err = self._process.communicate()
            why = f"no answer within {seconds:g} s"
        found: dict[str, Any] = {}
        for line in out.split("\n"):
            if line.startswith('{"'):
                found |= json.loads(line)
        found.setdefault("torch", {"error": why})
        found.setdefault("quantisation", {"8bit": why, "4bit": why})
        return found


def look_at_machine(request: Request, probe: Probe) -> Findings:
    """Cores and threads, memory, GPUs, quantisation."""
    found = Findings()
    _cpu(found, request)
    _memory(found)
    known = probe.result()
    _gpus(found, request, known["torch"])
    _quantisation(found, request, known["quantisation"])
    return found


def _cpu(found: Findings, request: Request) -> None:
    cores, usable = os.cpu_count() or 1, usable_cores()
    wanted = request.cfgs[0].resources.num_threads
    # as artifacts.py sets them
    threads = wanted or int(os.environ.get("RAPIDUN_NUM_THREADS") or 0) or cores
    of = f"{cores} cores" if usable >= cores else f"{usable:g} of {cores} cores"
    found.fact("cpu", f"{of}; torch would use {threads} thread{'s' if threads != 1 else ''}")
    if threads > usable and not request.slurm:
        found.problem(
            f"resources.num_threads={wanted}", f"{threads} threads would share {usable:g} cores, which is slow",
            f"pass resources.num_threads={max(1, int(usable))}",
        )  # fmt: skip


def usable_cores() -> float:
    """What this process may use: its affinity, and the quota of its control group."""
    allowed = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota, _, period = _read(CGROUP / "cpu.max").partition(" ")
    return min(allowed, int(quota) / int(period)) if quota.isdigit() and period.isdigit() else allowed


def _memory(found: Findings) -> None:
    total, available = memory()
    if not total:
        found.fact("memory", "unknown")
        return
    found.fact("memory", f"{total / GIB:.1f} GiB, {available / GIB:.1f} GiB of it free")
    if total < LITTLE_MEMORY:
        found.problem(
            "model=smollm2_135m", f"wants about 4 GiB of memory, this machine has {total / GIB:.1f}", "use model=tiny"
        )


def memory() -> tuple[int, int]:
    """Bytes of memory this process may have in all, and how many of them are free; (0, 0) where nobody says."""
    lines = dict(line.partition(":")[::2] for line in _read(Path("/proc/meminfo")).split("\n"))
    sizes = {name: int(value.split()[0]) * 1024 for name, value in lines.items() if value.strip()}
    total, available = sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)
    if not total and "SC_PHYS_PAGES" in os.sysconf_names:
        total = available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, used = _read(CGROUP / "memory.max"), _read(CGROUP / "memory.current")
    if limit.isdigit() and used.isdigit() and int(limit) < total:
        total, available = int(limit), min(available, max(0, int(limit) - int(used)))
    return total, available


def _gpus(found: Findings, request: Request, torch: dict[str, Any]) -> None:
    here = not request.slurm
    if "error" in torch:
        found.fact("torch", "cannot be used")
        found.problem("every run", f"torch cannot be used: {torch['error']}", "reinstall torch", needed=here)
        return
    gpus = torch["gpus"]
    built = f"CUDA {torch['cuda']}" if torch["cuda"] else "a CPU build"
    found.fact("torch", f"{torch['version']} ({built})")
    for index, gpu in enumerate(gpus):
        found.fact(
            f"gpu {index}",
            f"{gpu['name']}, {gpu['memory'] / GIB:.0f} GiB ({gpu['free'] / GIB:.0f} free), capability "
            f"{gpu['capability']}, bfloat16 {'yes' if torch['bf16'] else 'no'}",
        )
    if not gpus:
        why = "torch is a CPU build" if torch["cuda"] is None else "torch sees no GPU (driver? CUDA_VISIBLE_DEVICES?)"
        found.fact("gpu", f"none: {why}")
        found.problem(
            "model.device=cuda", why, "model.device=auto uses the CPU",
            needed=here and request.any(lambda cfg: cfg.model.device is Device.cuda),
        )  # fmt: skip
    on_gpu = bool(gpus)
    flash = Attention.flash_attention_2
    if not on_gpu or find_spec("flash_attn") is None:
        why = "needs the package flash_attn" if on_gpu else "needs a GPU"
        wanted = here and request.any(lambda cfg: cfg.model.attention is flash)
        found.problem(f"model.attention={flash.name}", why, "model.attention=auto is fine", needed=wanted)
    cpu = Device.cpu.name
    if on_gpu and not torch["bf16"]:
        found.problem(
            "model.dtype=bfloat16", "this GPU has no bfloat16", "pass model.dtype=float16 or float32",
            needed=here and request.any(lambda cfg: cfg.model.dtype is Dtype.bfloat16 and cfg.model.device.name != cpu),
        )  # fmt: skip
    if here:
        _enough_gpus(found, request, len(gpus))


def _enough_gpus(found: Findings, request: Request, number: int) -> None:
    kind = request.launcher_class
    # several at a time, on this machine: they have to share its GPUs out
    shared = kind is not None and not (kind.runs_elsewhere or kind.one_at_a_time)
    for cfg in request.distinct(lambda cfg: (cfg.resources.num_gpus, cfg.resources.num_processes)):
        each, processes = cfg.resources.num_gpus, cfg.resources.num_processes
        if each * processes > number:
            found.problem(
                f"resources.num_gpus={each}" + (f" resources.num_processes={processes}" if processes > 1 else ""),
                f"this machine shows {number} GPUs", "pass resources=cpu, or hydra/launcher=rapidun_slurm",
                # one run after the other refuses only to do without any
                needed=shared or (number == 0 and cfg.model.device is not Device.cpu),
            )  # fmt: skip


def _quantisation(found: Findings, request: Request, answers: dict[str, str]) -> None:
    usable = [name for name, why in answers.items() if not why]
    found.fact("quantisation", f"{' and '.join(usable)} usable (bitsandbytes)" if usable else "none usable")
    quantised = {cfg.model.quantisation.name for cfg in request.cfgs}
    for name, why in answers.items():
        if why:
            wanted = not request.slurm and name in quantised
            remedy = "pass model.quantisation=none, or reinstall bitsandbytes"
            found.problem(f"model.quantisation={name}", why, remedy, needed=wanted)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
