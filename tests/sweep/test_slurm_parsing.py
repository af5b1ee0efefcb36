"""SLURM's output as recorded on 22.05, what it means, and the scripts and dependencies that we write; no SLURM here."""

import os
import shlex
from pathlib import Path

import pytest

from rapidun.base.errors import ConfigError, RapidunError
from rapidun.config.sweep import ClusterConfig, ResourcesConfig
from rapidun.sweep.launcher import Job, JobState, LauncherContext, Phase
from rapidun.sweep.launchers.slurm import commands
from rapidun.sweep.launchers.slurm import launcher as slurm
from rapidun.sweep.launchers.slurm.batch import cluster_faults, dependency_text, setup_lines
from rapidun.sweep.launchers.slurm.launcher import SlurmLauncher, share_out, waves
from rapidun.sweep.launchers.slurm.partition import Nodes, count_gpus, parse_minutes, parse_sinfo, partition_faults
from rapidun.sweep.launchers.slurm.states import Seen, compress_tasks, expand_tasks, interpret, parse_jobs, parse_sacct

LINE = (
    "JobId={id} {array}JobName=rapidun-grid UserId=ann(1000) GroupId=ann(1000) Priority=4294901752 Nice=0 "
    "Account=(null) QOS=(null) JobState={state} Reason={reason} Dependency=(null) Requeue=1 Restarts={restarts} "
    "BatchFlag=1 ExitCode={code} RunTime=00:00:03 TimeLimit=01:00:00 Command=/x/a b=c.sh StdOut=/x/9_0_0_log.out"
)


def line(state, *, id=9, array="", reason="None", code="0:0", restarts=0):
    return LINE.format(id=id, array=array, state=state, reason=reason, code=code, restarts=restarts)


def job(name, *needs, **resources):
    return Job(id=name, file=Path(f"/x/{name}.json"), needs=needs, resources=ResourcesConfig(**resources))


def launcher(folder, **cluster):
    return SlurmLauncher(LauncherContext(sweep_dir=folder / "grid", cluster=ClusterConfig(**cluster), max_parallel=0))


def test_an_array_of_which_some_tasks_wait():
    """Tasks 2, 4, 5, 6 share a line; task 1 has come back from a requeue and has its own."""
    text = "\n".join(
        [
            line("PENDING", array="ArrayJobId=9 ArrayTaskId=2,4-6%2 ArrayTaskThrottle=2 ", reason="JobArrayTaskLimit"),
            line("RUNNING", id=10, array="ArrayJobId=9 ArrayTaskId=0 ArrayTaskThrottle=2 "),
            line("PENDING", id=11, array="ArrayJobId=9 ArrayTaskId=1 ", reason="BeginTime", restarts=1),
            line("COMPLETED", id=12, array="ArrayJobId=9 ArrayTaskId=3 "),
        ]
    )
    jobs = parse_jobs(text)
    assert set(jobs) == {f"9_{i}" for i in range(7)}
    assert jobs["9_5"] == Seen("PENDING", "JobArrayTaskLimit", 0, 0, 0)
    assert jobs["9_1"] == Seen("PENDING", "BeginTime", 0, 0, 1)
    assert [interpret(jobs[f"9_{i}"]).phase.value for i in range(4)] == ["running", "waiting", "waiting", "done"]


def test_a_task_of_its_own_wins_over_the_range():
    """Whichever line comes first: a task that runs is not waiting."""
    lines = [
        line("PENDING", array="ArrayJobId=9 ArrayTaskId=0-1 "),
        line("RUNNING", id=10, array="ArrayJobId=9 ArrayTaskId=0 "),
    ]
    for text in ("\n".join(lines), "\n".join(reversed(lines))):
        assert parse_jobs(text)["9_0"].state == "RUNNING"


def test_a_job_alone_and_nothing():
    assert parse_jobs(line("FAILED", code="1:0", reason="NonZeroExitCode"))["9"].status == 1
    assert parse_jobs("") == {}
    assert parse_jobs("No jobs in the system") == {}


RAISED = "ValueError: x\nsrun: error: n1: task 0: Exited with exit code 1"
OVER = "slurmstepd: error: StepId=1.0 exceeded memory limit (6 > 2), being killed"
TWO_RANKS = "srun: error: n1: task 1: Exited with exit code 1\nsrun: error: n1: task 0: Terminated"


@pytest.mark.parametrize(
    ("state", "code", "reason", "log", "cause"),
    [
        ("FAILED", "1:0", "NonZeroExitCode", RAISED, "exit status 1"),
        ("FAILED", "137:0", "NonZeroExitCode", "srun: error: n1: task 0: Killed", "killed by signal 9"),
        ("FAILED", "139:0", "NonZeroExitCode", "srun: error: n1: task 0: Segmentation fault", "killed by signal 11"),
        ("FAILED", "137:0", "NonZeroExitCode", OVER, "out of memory"),
        ("FAILED", "0:9", "RaisedSignal:9(Killed)", "", "killed by signal 9"),
        ("FAILED", "1:0", "NonZeroExitCode", "the model exceeded memory limit, it said", "exit status 1"),
        ("FAILED", "124:0", "NonZeroExitCode", "", "time limit"),
        # two processes: rank 1 raised, SLURM then stopped rank 0
        ("FAILED", "143:0", "NonZeroExitCode", TWO_RANKS, "exit status 1"),
        ("FAILED", "0:0", "JobLaunchFailure", "", "SLURM says FAILED (JobLaunchFailure)"),
        ("OUT_OF_MEMORY", "0:125", "OutOfMemory", "", "out of memory"),
        ("FAILED", "0:125", "OutOfMemory", "", "out of memory"),
        ("TIMEOUT", "0:15", "TimeLimit", "", "time limit"),
        ("CANCELLED", "0:15", "None", "", "cancelled"),
        ("NODE_FAIL", "0:0", "NodeDown", "", "node failure"),
        ("PREEMPTED", "0:15", "None", "", "preempted"),
    ],
)  # fmt: skip
def test_causes(state, code, reason, log, cause):
    seen = parse_jobs(line(state, code=code, reason=reason))["9"]
    assert interpret(seen, log=log) == JobState(Phase.failed, cause)


def test_what_waits_for_ever_says_why():
    assert interpret(Seen("PENDING", "JobHeldUser", 0, 0, 0)) == JobState(Phase.waiting, "held by the user")
    assert interpret(Seen("PENDING", "Resources", 0, 0, 0)) == JobState(Phase.waiting)


def test_sacct():
    """`CANCELLED by 1000` and a range of tasks that never started."""
    text = "9_0|COMPLETED|0:0\n9_1|CANCELLED by 1000|0:15\n9_[2-3%1]|PENDING|0:0\n12|OUT_OF_MEMORY|0:125\n"
    jobs = parse_sacct(text)
    assert {handle: seen.state for handle, seen in jobs.items()} == {
        "9_0": "COMPLETED",
        "9_1": "CANCELLED",
        "9_2": "PENDING",
        "9_3": "PENDING",
        "12": "OUT_OF_MEMORY",
    }


def test_ranges():
    assert expand_tasks("2,4-6%2") == [2, 4, 5, 6]
    assert expand_tasks("0-8:4") == [0, 4, 8]
    assert compress_tasks([6, 2, 5, 4, 9]) == "2,4-6,9"
    assert expand_tasks(compress_tasks(list(range(0, 40, 3)))) == list(range(0, 40, 3))


def test_dependencies():
    """Both tasks known of array 7 are needed: `7`; one of three of array 8: `8_2`; job 9 alone."""
    known = ["7_0", "7_1", "8_0", "8_1", "8_2", "9"]
    assert dependency_text(["7_1", "8_2", "9", "7_0"], known=known) == "afterany:7:8_2:9"
    assert dependency_text(["8_10", "8_2"], known=["8_2", "8_10", "8_0"]) == "afterany:8_2:8_10"
    assert dependency_text([], known=known) == ""


def test_waves():
    """a; b and c need a; d needs c: three waves. A need from outside counts for nothing; a circle is refused."""
    jobs = [job("d", "c"), job("b", "a", "elsewhere"), job("a"), job("c", "a")]
    assert [[one.id for one in wave] for wave in waves(jobs)] == [["a"], ["b", "c"], ["d"]]
    assert waves([]) == []
    with pytest.raises(ValueError, match="circle: x, y"):
        waves([job("x", "y"), job("y", "x")])


def test_the_limit_is_shared_out_over_arrays_side_by_side():
    """7 at once over 3 arrays: 3 + 2 + 2. 2 at once over 5 arrays: one each, the third after the first, and so on."""
    chunks = [[job(f"j{i}")] * 9 for i in range(5)]
    assert [(a.parallel, a.after) for a in share_out(chunks[:3], limit=7, first=4)] == [(3, None), (2, None), (2, None)]
    assert [(a.parallel, a.after) for a in share_out(chunks, limit=2, first=4)] == [
        (1, None),
        (1, None),
        (1, 4),
        (1, 5),
        (1, 6),
    ]
    assert [(a.parallel, a.after) for a in share_out(chunks[:1], limit=0, first=0)] == [(9, None)]


def test_two_thousand_cells_are_cut_into_legal_arrays(tmp_path, monkeypatch):
    """MaxArraySize 1001: 1001 + 999 after the two artifacts; the largest index is below the limit."""
    monkeypatch.setattr(slurm, "site_settings", lambda: {"MaxArraySize": "1001"})
    jobs = [job("poison"), job("influence", "poison"), *[job(f"c{i}", "influence", "poison") for i in range(2000)]]
    made = launcher(tmp_path)
    assert [len(array.jobs) for array in made.arrays(jobs)] == [1, 1, 1001, 999]
    assert [len(array.jobs) for array in launcher(tmp_path, max_array_size=800).arrays(jobs[2:])] == [800, 800, 400]
    # other resources: another array
    mixed = [job("a", timeout_min=5), job("b", timeout_min=6), job("c", timeout_min=5)]
    assert [[one.id for one in array.jobs] for array in made.arrays(mixed)] == [["a", "c"], ["b"]]


def test_script(tmp_path, monkeypatch):
    """What would be submitted, without submitting: one script for both arrays; values are quoted."""
    monkeypatch.setattr(slurm, "site_settings", lambda: {"MaxArraySize": "1001"})
    made = launcher(
        tmp_path,
        partition="night owls",
        modules=["cuda/12; rm -rf x"],
        environment={"COLOUR": "it's $HOME"},
        sbatch={"reservation": "maint", "exclusive": "true", "mail_user": "a@b.c"},
    )
    jobs = [job("p"), *[job(f"c{i}", "p", num_threads=4, num_gpus=1, num_processes=2, mem_gb=1.5) for i in range(3)]]
    text = made.script(jobs)
    first, second = text.split("#!/bin/bash")[1:]
    assert "# 1 jobs: p" in text
    assert "# 3 jobs as --array=0-2%3: c0 ... c2; after p" in text
    for expected in (
        "#SBATCH --partition='night owls'",
        "#SBATCH --reservation=maint",
        "#SBATCH --exclusive\n",
        "#SBATCH --mail-user=a@b.c",
        "#SBATCH --requeue\n",
        "#SBATCH --job-name=rapidun-grid",
        "#SBATCH --signal=USR2@90",
        "#SBATCH --time=240",
        "module load 'cuda/12; rm -rf x' || exit 1",
        # the values are the job's alone; how they are quoted: see below
        "export COLOUR='(hidden)'",
        "srun --unbuffered",
    ):
        assert expected in second
    for expected in ("--ntasks-per-node=2", "--cpus-per-task=4", "--gpus-per-task=1", "--mem=1536M"):
        assert expected in second and expected not in first
    quoted = setup_lines(ClusterConfig(environment={"COLOUR": "it's $HOME"}), ResourcesConfig())
    assert """export COLOUR='it'"'"'s $HOME'""" in quoted
    assert "wckey" not in text
    assert not (tmp_path / "grid").exists()


@pytest.mark.parametrize("name", ["50%j dir", "50% dir", "100%", "a%5Ab", "back\\slash", "two\nlines", "%%"])
def test_folders_that_slurm_would_read_as_others_are_refused(tmp_path, monkeypatch, name):
    """In `--output` every % is a pattern, a backslash switches patterns off, and a script has one line a setting."""
    monkeypatch.setattr(slurm, "site_settings", lambda: {"MaxArraySize": "1001"})
    monkeypatch.setattr(slurm, "missing_commands", lambda: ["sbatch"])
    made = launcher(tmp_path / name)
    assert any("sweep.name: need a sweep's folder" in fault for fault in made.check([job("a")]))
    for submit in (lambda: made.script([job("a")]), lambda: made.submit([job("a")], handles={})):
        with pytest.raises(ConfigError, match=r"sweep\.name: need a sweep's folder"):
            submit()
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["a b", "it's", "$HOME;x", "[a]*?", "#x", "\u00fc"])
def test_other_folders_are_quoted(tmp_path, monkeypatch, name):
    monkeypatch.setattr(slurm, "site_settings", lambda: {"MaxArraySize": "1001"})
    made = launcher(tmp_path / name)
    assert not [fault for fault in made.check([job("a")]) if "sweep.name" in fault]
    text = made.script([job("a")])
    [line] = [line for line in text.splitlines() if "--output=" in line]
    assert shlex.split(line.removeprefix("#SBATCH "))[0] == f"--output={made.folder}/%j_0_log.out"


def test_cluster_settings_that_cannot_be_written_down():
    cluster = ClusterConfig(
        sbatch={"array": "0-9", "reser\nvation": "x", "comment": "two\nlines", "nice": "100"},
        environment={"A B": "x", "SLURM_JOB_ID": "1", "FINE": "two\nlines"},
    )
    faults = cluster_faults(cluster)
    assert len(faults) == 5
    assert "cluster.sbatch.array: this option comes from sweep.max_parallel" in faults[0]
    assert all("nice" not in fault and "FINE" not in fault for fault in faults)


SINFO = "main*|up|1-00:00:00|64|256000|gpu:a100:4(S:0-1),shard:8\nlong|up|infinite|32+|128000|(null)\n"


def test_sinfo():
    assert parse_sinfo(SINFO) == [
        Nodes("main", True, True, 1440.0, 64, 256000, 4),
        Nodes("long", False, True, None, 32, 128000, 0),
    ]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("1-00:00:00", 1440),
        ("2-12", 3600),
        ("01:00:00", 60),
        ("30:00", 30),
        ("45", 45),
        ("infinite", None),
        ("n/a", None),
    ],
)
def test_minutes(text, minutes):
    assert parse_minutes(text) == minutes


@pytest.mark.parametrize(
    ("gres", "count"),
    [("gpu:2", 2), ("gpu:a100:4(S:0-1),gpu:t4:2", 6), ("(null)", 0), ("shard:8", 0), ("gpu:8(S:0)", 8)],
)
def test_gpus(gres, count):
    assert count_gpus(gres) == count


@pytest.mark.parametrize(
    ("partition", "resources", "expected"),
    [
        (None, {}, None),
        ("long", {"timeout_min": 99999}, None),
        ("main,long", {"timeout_min": 99999}, None),
        (None, {"timeout_min": 1441}, "resources.timeout_min: partition main allows at most 1440, got 1441"),
        (None, {"num_threads": 40, "num_processes": 2}, "at most 64 CPUs, got num_processes=2 x num_threads=40"),
        (None, {"mem_gb": 251}, "resources.mem_gb: a node of partition main has at most 250, got 251"),
        ("long", {"num_gpus": 1}, "resources.num_gpus: a node of partition long has at most 0 GPUs"),
        ("log", {}, "cluster.partition: need one of long, main, got log"),
        ("off", {}, "cluster.partition: off is down"),
        # each alone would fit one of the partitions, together they fit no node
        ("long,fat", {"num_threads": 32, "mem_gb": 400}, "no single node"),
    ],
)
def test_partition_limits(partition, resources, expected):
    kinds = parse_sinfo(SINFO)
    if partition == "off":
        kinds.append(Nodes("off", False, False, None, 1, 1, 0))
    if partition == "long,fat":
        kinds.append(Nodes("fat", False, True, None, 4, 512000, 0))
    faults = partition_faults(kinds, partition=partition, wanted=[ResourcesConfig(**resources)] * 2)
    if expected is None:
        assert faults == []
    else:
        (fault,) = faults
        assert expected in fault


def test_no_default_partition():
    (fault,) = partition_faults([Nodes("a", False, True, None, 1, 1, 0)], partition=None, wanted=[])
    assert "this cluster has no default" in fault


class FakeSlurm:
    """Answers scontrol and sacct from a dict; `down` makes it unreachable."""

    def __init__(self, monkeypatch, *, accounting="accounting_storage/none"):
        self.jobs: dict[str, str] = {}
        self.sacct = ""
        self.down = False
        self.calls: list[tuple[str, ...]] = []
        monkeypatch.setattr(slurm, "slurm", self)
        monkeypatch.setattr(slurm, "site_settings", lambda: {"AccountingStorageType": accounting})

    def __call__(self, *command):
        self.calls.append(command)
        if self.down:
            raise commands.SlurmUnreachable("SLURM does not answer")
        if command[0] == "sacct":
            return self.sacct
        if command[-1] not in self.jobs:
            raise commands.SlurmRefused("scontrol: Invalid job id specified")
        return self.jobs[command[-1]]


def test_states_ask_once_an_array_and_never_again_about_what_ended(tmp_path, monkeypatch):
    fake = FakeSlurm(monkeypatch)
    fake.jobs["9"] = "\n".join(
        [
            line("COMPLETED", id=10, array="ArrayJobId=9 ArrayTaskId=0 "),
            line("RUNNING", id=11, array="ArrayJobId=9 ArrayTaskId=1 "),
        ]
    )
    fake.jobs["12"] = line("COMPLETED", id=12)
    made = launcher(tmp_path)
    handles = {"a": "9_0", "b": "9_1", "c": "12"}
    assert [state.phase.value for state in made.states(handles).values()] == ["done", "running", "done"]
    assert [call[-1] for call in fake.calls] == ["9", "12"]
    fake.calls.clear()
    made.states(handles)
    assert [call[-1] for call in fake.calls] == ["9"]


def test_an_unreachable_controller_is_no_failure(tmp_path, monkeypatch):
    """What ran goes on running, what was never seen waits, both with the reason; afterwards the truth is back."""
    fake = FakeSlurm(monkeypatch)
    fake.jobs["12"] = line("RUNNING", id=12)
    made = launcher(tmp_path)
    made.states({"a": "12"})
    fake.down = True
    fault = "SLURM does not answer"
    states = made.states({"a": "12", "b": "13"})
    assert states == {"a": JobState(Phase.running, fault), "b": JobState(Phase.waiting, fault)}
    # one call, not one a job: each would take seconds
    assert len(fake.calls) == 2
    fake.down = False
    assert made.states({"a": "12", "b": "13"})["a"] == JobState(Phase.running)


def test_forgotten_jobs(tmp_path, monkeypatch):
    """Without accounting they are gone; with it, sacct tells."""
    fake = FakeSlurm(monkeypatch)
    assert launcher(tmp_path).states({"a": "9_0"})["a"].phase is Phase.gone
    assert not any(call[0] == "sacct" for call in fake.calls)
    fake = FakeSlurm(monkeypatch, accounting="accounting_storage/slurmdbd")
    fake.sacct = "9_0|TIMEOUT|0:0\n"
    states = launcher(tmp_path).states({"a": "9_0", "b": "9_1"})
    assert states["a"] == JobState(Phase.failed, "time limit")
    assert states["b"].phase is Phase.gone


def test_a_lost_node_is_looked_at_again(tmp_path, monkeypatch):
    """SLURM queues such a job again by itself: `node failure` is not the last word."""
    fake = FakeSlurm(monkeypatch)
    fake.jobs["12"] = line("NODE_FAIL", id=12)
    made = launcher(tmp_path)
    assert made.states({"a": "12"})["a"] == JobState(Phase.failed, "node failure")
    fake.jobs["12"] = line("RUNNING", id=12, restarts=1)
    assert made.states({"a": "12"})["a"] == JobState(Phase.running)


def test_only_the_last_start_of_a_log_tells_the_cause(tmp_path, monkeypatch):
    """Out of memory at first, requeued, then killed by somebody: the cause is the kill."""
    fake = FakeSlurm(monkeypatch)
    fake.jobs["12"] = line("FAILED", id=12, code="137:0", reason="NonZeroExitCode")
    made = launcher(tmp_path)
    made.folder.mkdir(parents=True)
    start = "submitit INFO - Starting with JobEnvironment(job_id=12)\n"
    over = "slurmstepd: error: StepId=12.0 exceeded memory limit (6 > 2), being killed\n"
    (made.folder / "12_0_log.out").write_text(start + over + start + "srun: error: n1: task 0: Killed\n")
    assert made.states({"a": "12"})["a"].cause == "killed by signal 9"
    (made.folder / "12_0_log.out").write_text(start + over)
    assert launcher(tmp_path).states({"a": "12"})["a"].cause == "out of memory"


def test_without_slurm_the_fault_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (fault,) = launcher(tmp_path).check([job("a")])
    assert "missing: sbatch" in fault and "rapidun_local" in fault
    with pytest.raises(commands.SlurmUnreachable, match="scontrol is not in PATH"):
        commands.slurm("scontrol", "show", "config")
    assert issubclass(commands.SlurmUnreachable, RapidunError)


def test_a_command_that_hangs_is_given_up(tmp_path, monkeypatch):
    program = tmp_path / "scontrol"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(commands.SlurmUnreachable, match=r"longer than 0\.2 s"):
        commands.slurm("scontrol", "show", "config", timeout_s=0.2)


def test_submission_from_inside_a_job_forgets_that_job(monkeypatch):
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("RANK", "1")
    with commands.submission_environment():
        assert (os.environ.get("SLURM_CONF"), "SLURM_JOB_ID" in os.environ) == ("/etc/slurm/slurm.conf", False)
        assert "RANK" not in os.environ
    assert {os.environ[name] for name in ("SLURM_CONF", "SLURM_JOB_ID", "RANK")} == {"/etc/slurm/slurm.conf", "5", "1"}
