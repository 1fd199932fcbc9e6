"""A real Slurm on loopback: controller, munge, and nodes by name, all of them on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "sinfo")

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
KillWait=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=cpu Nodes=ALL Default=YES MaxTime=60 State=UP OverSubscribe=YES PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=60 State=UP PriorityTier=2
"""


def is_installed() -> bool:
    return os.geteuid() == 0 and all(shutil.which(program) for program in PROGRAMS)


class SlurmCluster:
    """Nodes n1, n2, ... with four processors each, whatever the machine has."""

    def __init__(self, folder: Path, nodes: int = 2) -> None:
        self.folder = folder
        self.nodes = [f"n{i}" for i in range(1, nodes + 1)]
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        ports = _free_ports(nodes + 1)
        host = socket.gethostname().split(".")[0]
        lines = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 "
            "RealMemory=8000 State=UNKNOWN"
            for name, port in zip(self.nodes, ports[1:], strict=True)
        ]
        (folder / "state").mkdir()
        for name in self.nodes:
            (folder / f"spool-{name}").mkdir()
        (folder / "slurm.conf").write_text(
            CONF.format(
                folder=folder, port=ports[0], nodes="\n".join(lines), host=host, user="root"
            )
        )
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = [
            f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")
        ]
        socket_file = f"--socket={self.folder}/munge.socket"
        self._start("munged", ["munged", "--foreground", "--force", socket_file, *files])
        _wait((self.folder / "munge.socket").exists)
        self._start("slurmctld", ["slurmctld", "-D", "-c"])
        for name in self.nodes:
            self._start(name, ["slurmd", "-D", "-N", name])
        _wait(
            lambda: (
                self.says("sinfo", "--noheader", "--format=%t", "-N", "--partition=cpu").split()
                == ["idle"] * len(self.nodes)
            )
        )

    def says(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, capture_output=True, text=True, env=environment).stdout

    def kill_node(self, name: str) -> None:
        """As when its power goes: the daemon and all that it started, at once."""
        daemon = psutil.Process(self._processes.pop(name).pid)
        # Steps and their tasks do not belong to the daemon any more.
        for process in [daemon, *_of_node(name)]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)

    def stop(self) -> None:
        self.says("scancel", "--user=root", "--signal=KILL")
        for process in reversed(self._processes.values()):
            process.terminate()
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait()
        for step in psutil.process_iter():
            with suppress(psutil.Error):
                if step.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"]:
                    step.kill()

    def _start(self, name: str, command: list[str]) -> None:
        with open(self.folder / f"{name}.out", "wb") as out:
            self._processes[name] = subprocess.Popen(
                command,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )


def _of_node(name: str) -> list[psutil.Process]:
    """Processes that run as jobs of a node, and their step daemons."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("SLURMD_NODENAME") == name:
                found.append(process)
                parent = process.parent()
                if parent is not None and parent.name().startswith("slurmstepd"):
                    found.append(parent)
    return found


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "Slurm does not start"
        time.sleep(0.2)
