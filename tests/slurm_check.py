"""A SLURM of one node, started, used and stopped: ``make check-slurm``, on a Debian machine, as root.

Needs Debian's packages slurmctld, slurmd, slurm-client and munge, and the extra [slurm]. A run is submitted as a job
array; in mid-training one task is requeued by hand and another gets the signal that SLURM sends before it ends a job.
What comes out must equal an undisturbed run without SLURM, bit for bit, and no model may have been trained twice.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch

from bench.records import folder
from bench.records.sealing import read_tensors

ROOT = Path(__file__).parents[1]
RUN = ["run", "--study", "small", "--method", "pixel", "--floor", "random", "--queries", "1", "--k", "20"]
CONF = """
ClusterName=check
SlurmctldHost={host}
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,batch_sched_delay=1
KillWait=2
ReturnToService=2
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=check Nodes={host} Default=YES MaxTime=60 State=UP
"""


def wait_for(what: str, is_so: Callable[[], object], seconds: float = 120.0) -> None:
    """Return as soon as ``is_so``; end the program where it takes too long."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            sys.exit(f"check-slurm: waited {seconds:.0f} s for {what}")
        time.sleep(0.2)


def said(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


@contextmanager
def slurm(home: Path) -> Iterator[None]:
    """One node, this machine, within the folder ``home``."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun") if not shutil.which(name)]
    if missing or os.geteuid():
        sys.exit(
            f"check-slurm: root and {', '.join(missing) or 'nothing else'} needed: "
            "apt-get install slurmctld slurmd slurm-client munge"
        )
    for name in ("state", "spool"):
        (home / name).mkdir()
    host = socket.gethostname().partition(".")[0]
    conf, key = home / "slurm.conf", home / "munge.key"
    conf.write_text(CONF.format(host=host, home=home, cpus=os.cpu_count()))
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    os.environ["SLURM_CONF"] = str(conf)
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={home}/munge.socket",
         f"--pid-file={home}/munged.pid", f"--log-file={home}/munged.log", f"--seed-file={home}/munged.seed"],
        ["slurmctld", "-D", "-c", "-f", str(conf)],
        ["slurmd", "-D", "-c", "-f", str(conf)],
    ]  # fmt: skip
    started = []
    try:
        for command in commands:
            log = (home / f"{command[0]}.out").open("w")
            started.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
            time.sleep(1)
        wait_for("the node", lambda: said("sinfo", "--noheader", "--format=%T") == "idle", 60)
        yield
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(30)


def bench(*arguments: str) -> list[str]:
    """A command line of ``bench``."""
    return [sys.executable, "-m", "cli", *arguments]


def disturb(root: Path) -> list[str]:
    """Requeue one task that is training, and send the signal of a time-out to another; returns their numbers."""
    disturbed: list[str] = []
    for act in (
        lambda job: subprocess.run(["scontrol", "requeue", job], check=True),
        lambda job: subprocess.run(["scancel", "--signal=USR2", job], check=True),
    ):

        def running(act: Callable[[str], object] = act) -> bool:
            jobs = said("squeue", "--noheader", "--states=RUNNING", "--format=%i").split()
            other = [job for job in jobs if job not in disturbed]
            if len(list((root / "locks").glob("model-*.claim"))) < len(jobs) or not other:
                return False
            time.sleep(1)
            act(other[0])
            disturbed.append(other[0])
            return True

        wait_for("a task that trains", running, 240)
    return disturbed


def check(home: Path) -> None:
    """Run without and with SLURM, and compare."""
    alone, array = home / "alone", home / "array"
    subprocess.run(bench(*RUN, "--results", str(alone)), check=True, stdout=subprocess.DEVNULL)
    print("check-slurm: the undisturbed run is done")
    with slurm(home):
        print("check-slurm:", said("sinfo", "--version"), "runs; submitting")
        line = [*RUN, "--results", str(array), "--engine", "slurm", "--workers", "2", "--engine-set", "time=10m"]
        driver = subprocess.Popen(bench(*line))
        try:
            disturbed = disturb(array)
            print(f"check-slurm: {disturbed[0]} was requeued, {disturbed[1]} was told that its time is over")
            wait_for("the run", lambda: driver.poll() is not None, 600)
            wait_for("the queue to be empty", lambda: not said("squeue", "--noheader"), 240)
        finally:
            driver.kill()
            driver.wait()
        if driver.returncode:
            sys.exit(f"check-slurm: the run ended with exit code {driver.returncode}")
    left, right = (pd.read_parquet(root / folder.ROWS) for root in (alone, array))
    times = ["train_seconds", "score_seconds"]
    pd.testing.assert_frame_equal(left.drop(columns=times), right.drop(columns=times))
    for path in folder.models(alone):
        one, other = read_tensors(path)[0], read_tensors(array / "models" / path.name)[0]
        assert all(torch.equal(one[name], other[name]) for name in one), path.name
    logs = "\n".join(path.read_text() for path in (array / "logs").rglob("*.out"))
    trained = Counter(re.findall(r"^([0-9a-f]{16}): trained", logs, re.MULTILINE))
    assert trained, "the workers trained nothing"
    assert set(trained.values()) == {1}, f"trained twice: {trained}"
    restarts = len(
        re.findall(r"Caught signal SIGUSR2", "".join(p.read_text() for p in (array / "logs").rglob("*.err")))
    )
    print(
        f"check-slurm: {len(left)} values and {len(folder.models(alone))} models equal; "
        f"{sum(trained.values())} models trained by the array, each once; {restarts} task checkpointed by submitit"
    )


def main() -> None:
    """Where to work: a temporary folder, kept where something fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, help="an empty folder to work in, kept; else a temporary one")
    home = parser.parse_args().home
    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = str(ROOT)
    if home:
        home.mkdir(parents=True)
        check(home.resolve())
        return
    temporary = Path(tempfile.mkdtemp(prefix="check-slurm-"))
    print(f"check-slurm: works in {temporary}")
    check(temporary)
    shutil.rmtree(temporary)


if __name__ == "__main__":
    main()
