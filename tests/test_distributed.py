"""Two processes are one: losses, gradients, resuming, metrics; and what happens when one is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from avdistill import distributed
from avdistill.cli import main
from avdistill.config_io import encode
from avdistill.errors import ConfigError
from avdistill.training import train, trainer
from support.two_processes import CONFIGS, SYNCED, config, losses_and_gradients

TESTS = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def two(taught, tmp_path_factory, warm_python):
    """A folder with what two processes computed, trained, evaluated and printed."""
    out = tmp_path_factory.mktemp("two")
    words = [sys.executable, str(TESTS / "support" / "two_processes.py"), str(taught.folder), str(out)]
    # As torchrun starts them, but without their imports.
    shared = ENVIRONMENT | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    jobs = [warm_python.popen(words, env=shared | {"RANK": rank, "LOCAL_RANK": rank}, **pipes) for rank in ("0", "1")]
    try:
        told = [job.communicate(timeout=300) for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    assert [job.returncode for job in jobs] == [0, 0], told
    (out / "printed").write_text("".join(printed for printed, _ in told))
    return out


@pytest.fixture(scope="module")
def alone(taught):
    """What one process computes."""
    return losses_and_gradients(taught)


@pytest.mark.parametrize("method", CONFIGS)
def test_losses_and_gradients_are_those_of_one_process(alone, two, method):
    one = alone[method]
    several = torch.load(two / "gradients.pt", weights_only=True)[method]
    assert one.keys() == several.keys()
    for key, value in one.items():
        torch.testing.assert_close(several[key], value, rtol=1e-9, atol=1e-12, msg=lambda text, k=key: f"{k}: {text}")
    assert any(v.abs().max() > 1e-3 for k, v in one.items() if k.startswith("student."))


@pytest.mark.parametrize("method", SYNCED)
def test_synchronized_statistics_are_those_of_batchnorm_on_the_whole_batch(taught, two, method):
    """Losses, gradients and running statistics, with PyTorch's own layers in one process."""
    one = losses_and_gradients(taught, synced=True)[method]
    several = torch.load(two / "synced.pt", weights_only=True)[method]
    assert any("running_var" in key for key in one)
    assert one.keys() == several.keys()
    for key, value in one.items():
        torch.testing.assert_close(several[key], value, rtol=1e-9, atol=1e-12, msg=lambda text, k=key: f"{k}: {text}")


def test_a_layer_that_does_more_than_batchnorm_is_not_synchronized():
    class Activated(torch.nn.BatchNorm2d):
        """As timm has it."""

    with pytest.raises(ConfigError, match="expected BatchNorm layers of PyTorch, found Activated"):
        distributed.sync_batchnorm(torch.nn.Sequential(Activated(3)), torch.device("cpu"))


def agent(python, port, taught, run, victim=False):
    """One of two agents of torchrun, as each machine starts one."""
    words = [*TORCHRUN[:-3], "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-id", "run"]
    words += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1"]
    words += ["--rdzv-conf", "keep_alive_interval=1,keep_alive_max_attempt=6"]  # a lost agent is given up after 6 s
    words += [str(TESTS / "support" / "agent.py"), str(taught.folder), str(run), str(victim)]
    # With a store that the rounds share, a new agent waits for an address that the first one set in the round before.
    environment = ENVIRONMENT | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return python.popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def test_a_lost_machine_comes_back_and_the_run_ends_with_the_undisturbed_weights(taught, two, tmp_path, warm_python):
    """Two agents, one of which is killed with its process at step 5; its successor meets the other one again."""
    port, run = free_port(), tmp_path / "run"
    first = agent(warm_python, port, taught, run)
    until = time.monotonic() + 120
    while not is_listening(port):  # the first one keeps the rendezvous
        assert first.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    victim = agent(warm_python, port, taught, run, victim=True)
    victim.communicate(timeout=240)
    assert victim.returncode == -signal.SIGKILL
    second = agent(warm_python, port, taught, run)
    errors = [job.communicate(timeout=240)[1] for job in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), errors
    assert "another process of this run ended" in errors[0]
    for name in ("model.safetensors", "helpers.safetensors"):
        found, expected = (load_file(folder / "last" / name) for folder in (run, two / "whole"))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def is_listening(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_resume_of_train_takes_the_same_run_only(taught, tmp_path, capsys):
    run = tmp_path / "run"
    (tmp_path / "config.json").write_text(json.dumps(encode(config(taught.folder, run, steps=4))))
    words = ["train", "--config", str(tmp_path / "config.json"), "--resume"]
    assert main(words) == 0
    weights = (run / "last" / "model.safetensors").read_bytes()
    assert main(words) == 0
    assert (run / "last" / "model.safetensors").read_bytes() == weights
    assert main([*words, "--seed", "3"]) == 1
    assert "expected the run of this config, found one with another seed" in capsys.readouterr().err
    assert main(words[:-1]) == 1  # without the option nothing is continued by accident


def test_a_run_gives_up_after_its_time_limit(monkeypatch, taught, tmp_path):
    asked = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda _, timeout: asked.append(timeout))
    monkeypatch.setattr(distributed.atexit, "register", lambda _: None)
    train(config(taught.folder, tmp_path / "run", steps=1, process_timeout_seconds=90.0))
    assert asked == [timedelta(seconds=90)]
    with pytest.raises(ConfigError, match="process_timeout_seconds"):
        config(taught.folder, tmp_path / "run", process_timeout_seconds=0.0)


def test_a_run_of_two_processes_resumes_exactly(two):
    whole, halves = (
        {f.name: load_file(f) for f in (two / n / "last").glob("*.safetensors")} for n in ("whole", "halves")
    )
    assert len(whole) == 2
    for name, weights in whole.items():
        for key, value in weights.items():
            assert torch.equal(value, halves[name][key]), key
    steps = [json.loads(line)["step"] for line in (two / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)  # one process writes
    assert [s for s in steps if steps.count(s) == 1] == [1, 2, 3, 5, 6, 7, 9]  # the others also with validation
    saved = torch.load(two / "whole" / "last" / "state.pt", weights_only=True)
    assert len(saved["random"]["cpu"]) == 2
    assert not torch.equal(*saved["random"]["cpu"])


def test_metrics_are_those_of_one_process_and_told_once(taught, two, tmp_path):
    assert len((two / "printed").read_text().splitlines()) == 2
    for verb in ("evaluate", "retrieve"):
        assert main([verb, str(two / "whole"), str(taught.folder), "--out", str(tmp_path / verb)]) == 0
        one, several = (json.loads((folder / verb / "metrics.json").read_text()) for folder in (tmp_path, two))
        flat = {k: v for k, v in one.items() if isinstance(v, float)}
        assert flat
        assert {k: several[k] for k in flat} == pytest.approx(flat, abs=1e-5)
        assert {k: several[k] for k in one if k not in flat} == {k: v for k, v in one.items() if k not in flat}


def test_a_killed_process_ends_the_run_with_a_message_and_a_state_that_resumes(taught, tmp_path, warm_python):
    run = tmp_path / "run"
    (tmp_path / "config.json").write_text(json.dumps(encode(config(taught.folder, run, steps=100_000, save_every=2))))
    command = [*TORCHRUN, "-m", "avdistill", "train", "--config", str(tmp_path / "config.json")]
    with warm_python.popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=ENVIRONMENT
    ) as job:
        deadline = time.monotonic() + 120
        while not (run / "last").is_dir() and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        workers = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        victim = next(w for w in workers if b"\0RANK=1\0" in b"\0" + Path(f"/proc/{w}/environ").read_bytes())
        os.kill(int(victim), signal.SIGKILL)
        _, errors = job.communicate(timeout=120)
    assert job.returncode != 0
    told = [line for line in errors.splitlines() if line.startswith("avdistill: ")]
    assert len(told) == 1, errors
    assert "another process of this run ended" in told[0]
    assert f"avdistill resume {run}" in told[0]
    shorter = json.loads((run / "config.json").read_text())
    step = torch.load(run / "last" / "state.pt", weights_only=True)["progress"]["step"]
    (run / "config.json").write_text(json.dumps(shorter | {"steps": step + 2}))
    assert main(["resume", str(run)]) == 0  # one process goes on where two were
    assert torch.load(run / "last" / "state.pt", weights_only=True)["progress"]["step"] == step + 2


def test_a_batch_that_cannot_be_shared_is_refused(taught, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    with pytest.raises(ConfigError, match="multiple of the 4 processes"):
        train(config(taught.folder, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_process_told_to_end_after_its_peer_was_lost_still_says_so(monkeypatch):
    # torchrun sends SIGTERM to the survivors at about the moment they notice for themselves.
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(RuntimeError, match="closed"), trainer._stop_signals():
            raise RuntimeError("connection closed by peer")
        os.kill(os.getpid(), signal.SIGTERM)  # would end this process
    finally:
        signal.signal(signal.SIGTERM, before)
    with pytest.raises(ConfigError), trainer._stop_signals():
        raise ConfigError("another error")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_a_gpu_is_taken_by_its_number(monkeypatch, wanted):
    """`set_device` refuses "cuda" without one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: taken.append(torch.device(device).index))
    with distributed.init_distributed(wanted) as device:
        assert device == torch.device("cuda", 1)
    assert taken == [1]
