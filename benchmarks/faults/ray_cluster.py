"""A command on a Ray cluster of two nodes of this machine, one of which is killed while it has a task.

ray_cluster.py PARTS WORD...    runs `avdistill WORD... --ray ADDRESS`, kills the second node once a part is finished in
the folder PARTS and that node is at another one, and ends with the command's exit code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray.cluster_utils

# A node counts as lost after a second without an answer, in place of a quarter of a minute.
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 2}


def tasks_below(process: int) -> list[int]:
    """The processes with a task that a process has started, itself or by others."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_bytes()
            except OSError:  # ended in between
                continue
    found = []
    for each, name in names.items():
        above = each
        while above in parents and above != process:
            above = parents[above]
        if above == process and name.startswith(b"ray::call"):
            found.append(each)
    return found


def main(parts: Path, words: list[str]) -> int:
    """Run the command; returns its exit code."""
    os.environ["RAY_TMPDIR"] = folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets have short paths
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": HEALTH}
    cluster = ray.cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    try:
        worker = cluster.add_node(num_cpus=1)
        (raylet,) = worker.all_processes["raylet"]
        command = [sys.executable, "-m", "avdistill", *words, "--ray", cluster.address]
        with subprocess.Popen(command) as running:
            until = time.monotonic() + 300
            while running.poll() is None:
                finished = [part for part in parts.glob("*-of-*") if part.suffix != ".partial"]
                if finished and tasks_below(raylet.process.pid):
                    cluster.remove_node(worker, allow_graceful=False)
                    print(f"killed a node after {len(finished)} parts", flush=True)
                    break
                if time.monotonic() > until:
                    running.kill()
                time.sleep(0.02)
            return running.wait(900)
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
