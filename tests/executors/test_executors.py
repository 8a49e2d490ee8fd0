"""Executors of this machine: values, errors and lost processes come back; what Slurm is asked for."""

import operator
import os
import signal
import sys
import time

import pytest

from avdistill.analysis.benchmark.jobs import PRELOAD  # the server of a process is started once, for all its tests
from avdistill.errors import ConfigError, DatasetError, TaskLostError
from avdistill.executors.local import LocalExecutor
from avdistill.executors.slurm import SlurmExecutor, parse_settings
from support.tasks import busy, fail, fail_oddly, lose_once


def ends(executor, count):
    found = {}
    until = time.monotonic() + 120
    while len(found) < count:
        assert time.monotonic() < until
        found |= {ended.key: ended for ended in executor.collect()}
    return found


def submitit_executor(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="submitit is not installed: pip install avdistill[slurm]")
    monkeypatch.setattr("submitit.slurm.slurm.SlurmExecutor.affinity", lambda: -1)  # also where there is Slurm
    # On a network drive a result may come seconds after its job.
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 1)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # its processes import the tasks too
    return SlurmExecutor("partition=any,time=5", tmp_path / "logs")


@pytest.mark.parametrize("kind", ["local", "submitit"])
def test_values_and_errors_come_back(kind, tmp_path, monkeypatch):
    executor = LocalExecutor(2, PRELOAD) if kind == "local" else submitit_executor(tmp_path, monkeypatch)
    try:
        assert executor.free
        executor.start("sum", operator.add, 2, 3)
        executor.start("ours", fail, "a dataset: expected frames, found none")
        assert set(executor.running) == {"sum", "ours"}
        found = ends(executor, 2)
        executor.start("other", fail_oddly)
        found |= ends(executor, 1)
    finally:
        executor.stop()
    assert (found["sum"].value, found["sum"].error) == (5, None)
    assert isinstance(found["ours"].error, DatasetError)
    assert str(found["ours"].error) == "a dataset: expected frames, found none"
    assert "OddError: cannot travel" in str(found["other"].error)  # its class takes no text when it is unpickled
    assert not executor.running


def test_a_task_whose_process_is_killed_is_lost_here_and_begun_again_by_slurm(tmp_path, monkeypatch):
    executor = LocalExecutor(1, PRELOAD)
    executor.start("lost", lose_once, tmp_path / "local")
    (ended,) = ends(executor, 1).values()
    assert isinstance(ended.error, TaskLostError)
    assert f"code -{signal.SIGKILL.value}" in str(ended.error)

    executor = submitit_executor(tmp_path, monkeypatch)
    executor.start("again", lose_once, tmp_path / "slurm")
    assert ends(executor, 1)["again"].value == "the second time"
    executor.stop()


def test_stop_ends_what_is_running(tmp_path):
    executor = LocalExecutor(1, PRELOAD)
    executor.start("busy", busy, tmp_path / "begun")
    assert not executor.free
    until = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    executor.stop()
    assert executor.free
    process = int((tmp_path / "begun").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


@pytest.mark.parametrize(
    ("text", "minutes"),
    # As the manual page of sbatch lists them, in minutes, rounded up.
    [("90", 90), ("30:30", 31), ("2:00:00", 120), ("1-0", 1440), ("1-12:30", 2190), ("2-1:00:01", 2941)],
)
def test_time_limits_are_those_of_sbatch(text, minutes):
    options, found, gpus, jobs = parse_settings(f"partition=cpu,time={text},mem-per-cpu=2G,gpus=2,jobs=7,mail_user=a@b")
    assert found == minutes
    assert options == {"partition": "cpu", "mem-per-cpu": "2G", "mail-user": "a@b"}
    assert (gpus, jobs) == (2, 7)


@pytest.mark.parametrize("wrong", ["cpu", "partition=", "time=soon", "jobs=0", "gpus=all", "a=1,,b=2", "=x"])
def test_settings_that_are_none_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"--slurm: .*expected"):
        parse_settings(wrong)


def test_a_job_of_slurm_has_its_settings(tmp_path, monkeypatch):
    """The script that a stand-in for sbatch is given."""
    pytest.importorskip("submitit", reason="submitit is not installed: pip install avdistill[slurm]")
    for name, line in {"srun": "", "sbatch": f"cat $1 > {tmp_path}/script; echo Submitted batch job 12"}.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    executor = SlurmExecutor("partition=long,account=lab,time=1-0,gpus=2", tmp_path / "logs", cpus=3)
    executor.start("task", operator.add, 1, 2, gpu=True)
    assert executor.running == ["task"]
    lines = (tmp_path / "script").read_text().splitlines()
    wanted = ("partition=long", "account=lab", "time=1440", "gpus-per-node=2", "cpus-per-task=3")
    assert {f"#SBATCH --{line}" for line in wanted} <= set(lines)
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho 'invalid partition specified: long' >&2\nexit 1\n")
    with pytest.raises(ConfigError, match=r"--slurm: sbatch: .*invalid partition"):
        executor.start("refused", operator.add, 1, 2)
