"""Slurm: a job for each worker, submitted by submitit and requeued when it is preempted.

A job connects to the driver, so compute nodes have to reach the machine where the command runs.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeops.errors import ConfigError
from mergeops.executors.engines import executor
from mergeops.executors.line import Invitation, own_address
from mergeops.executors.worker import work
from mergeops.recipe import ExecutorSpec

INSTALL = "pip install 'mergeops[slurm]'"
SYSTEM = 2 * 10**9
"""Bytes that Slurm is asked for besides a worker's own: libraries, and files that are mapped."""
ASKED_EVERY_S = 2.0
"""Between two questions about jobs: the controller serves everybody."""
NOTICE_S = 30
"""Seconds before a job's time limit in which it is requeued."""
ENDING_S, WAIT_S = 5.0, 0.25
"""In which Slurm decides what becomes of a job whose worker is gone, and between two looks."""
QUEUED = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "CONFIGURING")
"""States of a job that begins again."""
LOG_BYTES = 1500
_TIME = re.compile(r"(\d+)\s*(s|min|h|d)")
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class SlurmParameters:
    """Parameters of ``slurm``."""

    partition: str | None = None
    """Null takes the cluster's default."""
    time: str | None = None
    """Limit of a job: 2h, 30min, or as sbatch writes it; null takes the partition's."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """More of sbatch's options, by their long names."""
    folder: str | None = None
    """Where jobs and their logs lie, on storage that all share; null takes mergeops-work/slurm."""
    driver: str | None = None
    """The name or address by which jobs reach this machine; null finds it out."""

    def __post_init__(self) -> None:
        if self.time is not None:
            sbatch_time(self.time)


def sbatch_time(text: str) -> str:
    """``2h`` as sbatch writes it; what is written so already is left.

    Raises:
        ConfigError: it is neither.
    """
    if re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        return text
    if found := _TIME.fullmatch(text):
        minutes = -(-int(found[1]) * _SECONDS[found[2]] // 60)
        return f"{minutes // 60}:{minutes % 60:02d}:00"
    raise ConfigError(
        f"executor.time is {text!r}; write 30min, 2h, 1d, or as sbatch does, e.g. 1-12:00:00"
    )


def sbatch_options(
    spec: ExecutorSpec, parameters: SlurmParameters, memory: int | None
) -> dict[str, Any]:
    """What sbatch is asked for a worker, by the long names of its options."""
    wanted: dict[str, Any] = {
        "partition": parameters.partition,
        "time": sbatch_time(parameters.time) if parameters.time else None,
        "cpus-per-task": spec.threads or 1,
        "mem": f"{(memory + SYSTEM) // 10**6}M" if memory else None,
        "gpus-per-node": int(spec.gpus_per_worker) or None,
        **parameters.options,
    }
    return {name: value for name, value in wanted.items() if value is not None}


class SlurmWorkers:
    """Jobs of this user.

    Args:
        submitter: submitit's executor.
        workers: how many.
        memory: bytes of its own that each may hold.
        address: by which jobs reach this machine.
    """

    def __init__(self, submitter: Any, workers: int, memory: int | None, address: str) -> None:
        self.workers = workers
        self.memory = memory
        self.address = address
        self._submitter = submitter
        self._jobs: dict[int, Any] = {}
        self._asked = self._looked = 0.0

    def launch(self, invitation: Invitation) -> None:
        """See ``Launcher``.

        Raises:
            ConfigError: Slurm refuses the job.
        """
        import submitit

        try:
            # submitit prints what sbatch says, which is in the error, too.
            with contextlib.redirect_stderr(io.StringIO()):
                job = self._submitter.submit(SlurmWork(), invitation.text())
            self._jobs[invitation.number] = job
        except (submitit.core.utils.FailedJobError, RuntimeError) as error:
            raise ConfigError(f"Slurm refuses a worker's job: {_last_line(str(error))}") from error

    def ended(self) -> Mapping[int, str]:
        """See ``Launcher``; asked seldom, so most of the time it knows of none."""
        if not self._jobs or time.monotonic() - self._asked < ASKED_EVERY_S:
            return {}
        self._asked = time.monotonic()
        ids = ",".join(job.job_id for job in self._jobs.values())
        listed = run(["squeue", "--noheader", "--format=%i", f"--jobs={ids}"], check=False)
        here = set(listed.split())
        ended = {}
        for number, job in list(self._jobs.items()):
            if job.job_id not in here:
                del self._jobs[number]
                ended[number] = f"Slurm's job {job.job_id} {_end_of(job)}"
        return ended

    def leaving(self) -> Collection[int]:
        """See ``Launcher``; as often as ``ended``."""
        if not self._jobs or time.monotonic() - self._looked < ASKED_EVERY_S:
            return ()
        self._looked = time.monotonic()
        drained = run(
            ["sinfo", "--noheader", "--Node", "--states=drain", "--format=%N"], check=False
        )
        if not drained.strip():
            return ()
        nodes = ",".join(sorted(set(drained.split())))
        question = ["squeue", "--noheader", "--format=%i", f"--nodelist={nodes}"]
        jobs = set(run(question, check=False).split())
        return [number for number, job in self._jobs.items() if job.job_id in jobs]

    def was_taken(self, number: int) -> bool:
        """See ``Launcher``."""
        if number not in self._jobs:
            return False
        question = ["squeue", "--noheader", "--format=%T", f"--jobs={self._jobs[number].job_id}"]
        end = time.monotonic() + ENDING_S
        while (state := run(question, check=False).strip()) in ("RUNNING", "COMPLETING"):
            if time.monotonic() > end:
                return False
            time.sleep(WAIT_S)
        return state in QUEUED

    def stop(self, number: int) -> None:
        """See ``Launcher``."""
        if number in self._jobs:
            run(["scancel", self._jobs[number].job_id], check=False)

    def close(self) -> None:
        """See ``Launcher``."""
        for number in list(self._jobs):
            self.stop(number)


class SlurmWork:
    """A job, which submitit calls; when Slurm takes its node, it begins again on another."""

    def __call__(self, invitation: str) -> None:
        """Do units until there are no more."""
        work(invitation, os.environ.get("SLURMD_NODENAME", ""))

    def checkpoint(self, invitation: str) -> Any:
        """What submitit requeues."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, invitation)


def run(command: Sequence[str], *, check: bool = True) -> str:
    """The output of one of Slurm's commands.

    Raises:
        ConfigError: it fails, with ``check``.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{command[0]} cannot be run: {error}") from error
    if check and done.returncode:
        raise ConfigError(f"{command[0]} fails: {_last_line(done.stderr)}; is Slurm up?")
    return done.stdout


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it says nothing"


def _end_of(job: Any) -> str:
    """What Slurm and the job's output say of its end, in one line."""
    shown = run(["scontrol", "show", "job", "--oneliner", job.job_id], check=False)
    facts = dict(word.split("=", 1) for word in shown.split() if "=" in word)
    told = f"is {facts.get('JobState', 'gone')}"
    if facts.get("Reason", "None") != "None":
        told += f" ({facts['Reason']})"
    try:
        output = Path(job.paths.stdout).read_bytes()[-LOG_BYTES:].decode(errors="replace")
    except OSError:
        output = ""
    lines = [line for line in output.splitlines() if "Error" in line or "error" in line]
    return f"{told}: {_last_line(lines[-1])}" if lines else told


def driver_script(spec: ExecutorSpec, parameters: SlurmParameters, memory: int | None) -> str:
    """An sbatch script whose job is the driver, which submits the workers' jobs."""
    options = {
        "job-name": "mergeops",
        **sbatch_options(spec, parameters, None),
        "cpus-per-task": 2,
        "mem": "8G",
        "output": "mergeops-%j.log",
    }
    options.pop("gpus-per-node", None)
    words = [f"executor=slurm executor.workers={1 if spec.workers == 'auto' else spec.workers}"]
    if parameters.partition:
        words.append(f"executor.partition={parameters.partition}")
    if parameters.time:
        words.append(f"executor.time={parameters.time}")
    if spec.threads:
        words.append(f"executor.threads={spec.threads}")
    if spec.gpus_per_worker:
        words.append(f"executor.gpus_per_worker={spec.gpus_per_worker:g}")
    if memory:
        words.append(f"executor.memory={spec.memory}")
    head = "\n".join(f"#SBATCH --{name}={value}" for name, value in options.items())
    return (
        f"#!/bin/bash\n{head}\n#SBATCH --requeue\n"
        "# This job is the driver: it submits a job for each worker, and cancels them at its end.\n"
        "# When it is killed or requeued, the same command goes on where it was.\n"
        f"exec mergeops merge recipe.yml out {' '.join(words)}\n"
    )


@executor("slurm", SlurmParameters, script=driver_script)
def launcher(spec: ExecutorSpec, parameters: SlurmParameters, memory: int | None) -> SlurmWorkers:
    """Jobs of Slurm, as many as the recipe says.

    Raises:
        ConfigError: submitit or Slurm is not installed, Slurm is down, there is no such partition,
            or the number of workers is not given.
    """
    try:
        import submitit
    except ImportError as error:
        raise ConfigError(
            f"executor=slurm needs submitit, which is not installed: {INSTALL}"
        ) from error
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "executor=slurm needs Slurm's commands, and there is no sbatch here; run the command "
            "on a machine of the cluster, e.g. its login node"
        )
    if spec.workers == "auto":
        raise ConfigError("executor.workers is auto; say how many jobs, e.g. executor.workers=4")
    check_partition(parameters.partition)
    folder = Path(parameters.folder or "mergeops-work/slurm").absolute()
    # What a job needs to join is in there.
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    submitter = submitit.SlurmExecutor(folder=folder / "%j")
    options = sbatch_options(spec, parameters, memory)
    submitter.update_parameters(
        job_name="mergeops",
        time=None,
        wckey=None,
        signal_delay_s=NOTICE_S,
        stderr_to_stdout=True,
        setup=[f"export OMP_NUM_THREADS={spec.threads or 1}"],
        additional_parameters=options,
    )
    address = parameters.driver or own_address()
    return SlurmWorkers(submitter, int(spec.workers), memory, address)


def check_partition(partition: str | None) -> None:
    """Refuse a partition that does not exist.

    Raises:
        ConfigError: says which there are; or Slurm is down.
    """
    there = sorted(set(run(["sinfo", "--noheader", "--format=%R"]).split()))
    if partition is not None and not set(partition.split(",")) <= set(there):
        raise ConfigError(
            f"executor.partition is {partition!r}; there are: {', '.join(there) or 'none'}"
        )
