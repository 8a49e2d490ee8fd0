"""A worker ends with its parent, however that one ends, and a training saves first."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# A worker that takes SIGTERM as a training does (`saves`), or not at all.
PROGRAM = """
import multiprocessing, os, signal, sys, time
from avdistill.executors.parent import end_with_parent

def work(folder, saves):
    end_with_parent()
    def save(number, frame):
        os.mkdir(folder + "/saved")
        sys.exit()
    if saves:
        signal.signal(signal.SIGTERM, save)
    os.mkdir(f"{folder}/{os.getpid()}")
    while True:
        time.sleep(1)

if __name__ == "__main__":
    folder, start, saves = sys.argv[1:]
    multiprocessing.get_context(start).Process(target=work, args=(folder, saves == "saves")).start()
    time.sleep(60)
"""


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # ended, but nobody has asked for its exit code


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="it looks for processes in /proc")
@pytest.mark.parametrize(
    ("start", "sent", "takes"),
    [
        ("forkserver", signal.SIGTERM, "saves"),
        ("forkserver", signal.SIGKILL, "ends"),
        ("spawn", signal.SIGHUP, "saves"),
        ("spawn", signal.SIGKILL, "saves"),
    ],
)
def test_a_worker_ends_with_its_parent(tmp_path, start, sent, takes):
    (tmp_path / "program.py").write_text(PROGRAM)
    (folder := tmp_path / "made").mkdir()
    words = [sys.executable, tmp_path / "program.py", folder, start, takes]
    # A test run in the background may ignore SIGHUP, and hands that down.
    parent = subprocess.Popen(words, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))
    try:
        until = time.monotonic() + 30
        while not (made := list(folder.iterdir())):
            assert time.monotonic() < until
            time.sleep(0.02)
        parent.send_signal(sent)
        assert parent.wait(10) == -sent
        while is_alive(int(made[0].name)):
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        parent.kill()
    assert (folder / "saved").exists() == (takes == "saves")
