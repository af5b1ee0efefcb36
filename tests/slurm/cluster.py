"""A SLURM of one node in a folder of its own: munged, slurmctld and slurmd on free ports, up in a second or two.

It needs root (slurmd starts jobs as their owner) and the packages that `.ci/slurm-packages` installs; no systemd, no
database, no cgroups. Several such clusters run at once on one machine.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
# Debian keeps the daemons where an ordinary user's PATH does not look.
PROGRAM_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/sbin"])

CONF = """\
ClusterName=rapidun-test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld_port}
SlurmdPort={slurmd_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until its credential has expired: 20 s instead of 120 s. Less is too little on a busy machine: a
# job whose start takes longer fails, its credential expired.
AuthInfo=socket={folder}/munge/munge.socket,cred_expire=20
# The same machine runs the daemons, the jobs and whatever else: nobody is taken for dead because it is slow.
MessageTimeout=60
TCPTimeout=30
BatchStartTimeout=300
UnkillableStepTimeout=600
SlurmdTimeout=0
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
# Without cgroups nothing stops a process that takes too much memory: slurmstepd adds up the resident memory of a step
# once a second instead and kills the step that is over its limit (OverMemoryKill). SLURM then shows FAILED with exit
# code 137, as for any SIGKILL; that memory was the cause stands only in the job's own log: `exceeded memory limit`.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU={default_mb}
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2,default_queue_depth=1000
SlurmctldParameters=preempt_send_user_signal
MaxArraySize={max_array_size}
MaxJobCount={max_job_count}
MinJobAge={min_job_age}
KillWait={kill_wait}
OverTimeLimit=0
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
GresTypes=gpu
# More CPUs may be declared than the machine has, so that several tiny jobs run at once.
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mb}{gres} State=UNKNOWN
PartitionName=ci Nodes={host} Default=YES MaxTime={max_time} State=UP
"""


class Cluster:
    """A running one-node SLURM; a context manager that stops every daemon, also one that only half started."""

    def __init__(
        self,
        folder: Path,
        *,
        cpus: int = 2,
        memory_mb: int = 16000,
        gpus: int = 2,
        max_array_size: int = 1001,
        max_job_count: int = 10000,
        max_time: str = "01:00:00",
        min_job_age: int = 3600,
        kill_wait: int = 30,
    ) -> None:
        self.folder = folder.resolve()
        self.host = socket.gethostname().split(".")[0]
        slurmctld_port, slurmd_port = free_ports(2)
        self.conf = CONF.format(
            host=self.host,
            folder=self.folder,
            slurmctld_port=slurmctld_port,
            slurmd_port=slurmd_port,
            cpus=cpus,
            memory_mb=memory_mb,
            # several jobs share the node without asking: each gets its CPU's part of the memory
            default_mb=memory_mb // cpus,
            gres=f" Gres=gpu:{gpus}" if gpus else "",
            max_array_size=max_array_size,
            max_job_count=max_job_count,
            max_time=max_time,
            min_job_age=min_job_age,
            kill_wait=kill_wait,
        )
        # SLURM makes CUDA_VISIBLE_DEVICES only for GPUs that have a device file; any character device will do.
        self.gres_conf = f"NodeName={self.host} Name=gpu File=/dev/tty[0-{gpus - 1}]\n" if gpus else ""

    @staticmethod
    def missing() -> str:
        """Why no cluster can be started here; empty if it can."""
        if os.geteuid() != 0:
            return "slurmd needs root"
        absent = [name for name in PROGRAMS if shutil.which(name, path=PROGRAM_PATH) is None]
        return f"not installed: {', '.join(absent)} (.ci/slurm-packages installs them)" if absent else ""

    @property
    def environment(self) -> dict[str, str]:
        """What commands of this cluster need in their environment."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": PROGRAM_PATH}

    def command(self, *args: str, check: bool = True, timeout: float = 120.0) -> str:
        """Run a SLURM command of this cluster and return what it prints."""
        environment = os.environ | self.environment
        done = subprocess.run(args, env=environment, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(args)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def __enter__(self) -> "Cluster":
        if reason := self.missing():
            raise RuntimeError(reason)
        # A Unix socket's path has at most 107 bytes; slurmstepd's are the longest.
        if len(f"{self.folder}/spool/{self.host}_4294967295.4294967295") > 107:
            raise RuntimeError(f"{self.folder}: need a shorter path for the sockets")
        for name in ("munge", "state", "spool", "log"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "munge").chmod(0o711)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        (self.folder / "slurm.conf").write_text(self.conf)
        (self.folder / "gres.conf").write_text(self.gres_conf)
        try:
            self.start_munged()
            self.start_slurmctld(clean=True)
            self.start_slurmd()
            self.wait_for_node("idle")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start_munged(self) -> None:
        munge = self.folder / "munge"
        # --force: the folder may lie below one that others can write to, such as /tmp
        self.command(
            "munged",
            "--force",
            f"--key-file={munge}/key",
            f"--socket={munge}/munge.socket",
            f"--pid-file={self.folder}/munged.pid",
            f"--log-file={self.folder}/log/munged.log",
            f"--seed-file={munge}/seed",
            "--num-threads=2",
        )

    def start_slurmctld(self, *, clean: bool = False) -> None:
        self.command("slurmctld", *(["-c"] if clean else []), "-f", str(self.folder / "slurm.conf"))

    def start_slurmd(self) -> None:
        self.command("slurmd", "-f", str(self.folder / "slurm.conf"))

    def wait_for_node(self, state: str, *, timeout_s: float = 120.0) -> None:
        deadline = time.monotonic() + timeout_s
        seen = ""
        while time.monotonic() < deadline:
            seen = self.command("sinfo", "-h", "-o", "%T", check=False).strip()
            if seen == state:
                return
            time.sleep(0.1)
        raise RuntimeError(f"node is {seen or 'unknown'} instead of {state}\n{self.logs()}")

    def logs(self, lines: int = 15) -> str:
        """The ends of the daemons' logs."""
        files = sorted((self.folder / "log").glob("*.log"))
        return "\n".join(f"== {f.name}\n" + "\n".join(f.read_text().splitlines()[-lines:]) for f in files)

    def stop(self) -> None:
        """End every job and daemon, the daemons by their pid files; harmless when they have ended already."""
        if (self.folder / "slurmctld.pid").exists():
            # a controller that hangs must not keep the daemons from being stopped
            with suppress(subprocess.TimeoutExpired):
                self.command("scancel", "--signal=KILL", "--full", "--user=root", check=False, timeout=20)
                self.command("scancel", "--user=root", check=False, timeout=20)
        self.kill_stragglers()
        for name in ("slurmd", "slurmctld", "munged"):
            self.stop_daemon(name)

    def stop_daemon(self, name: str, *, timeout_s: float = 30.0) -> None:
        """Stop one daemon and wait until it has gone."""
        pid_file = self.folder / f"{name}.pid"
        if not pid_file.exists():
            return
        pid = int(pid_file.read_text().strip())
        deadline = time.monotonic() + timeout_s
        sent = signal.SIGTERM
        with suppress(ProcessLookupError):
            while True:
                os.kill(pid, sent)
                for _ in range(40):
                    time.sleep(0.05)
                    os.kill(pid, 0)
                if time.monotonic() > deadline:
                    sent = signal.SIGKILL
        pid_file.unlink(missing_ok=True)

    def kill_stragglers(self) -> None:
        """Kill processes of this cluster's jobs, and their slurmstepd, that a hanging controller could not."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                variables = process.environ()
                if "SLURM_JOB_ID" in variables and variables.get("SLURM_CONF") == self.environment["SLURM_CONF"]:
                    stepd = [parent for parent in process.parents() if parent.name() == "slurmstepd"]
                    for each in [process, *stepd]:
                        each.kill()


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
