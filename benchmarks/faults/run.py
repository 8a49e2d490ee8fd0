"""The fault list, really run through the command line: `results/faults.json` and the table of docs/reliability.md.

    python benchmarks/faults/run.py [--clips DIR] [--work DIR] [--seed N] [--only NAME,NAME [--update]]

Every fault is a function whose checks can fail. A promise that is broken is written down as broken and makes the exit
code 1; what this machine cannot do is "not run", with the reason. `--clips` names a folder of videos to mutate in place
of the generated ones. Rows are replaced as they end. With `--only` nothing is written; with `--update` as well, the
rows of those faults.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1] / "results"))  # what it shares with the scripts there

import files
import kills
import machines
import runs
from avdistill.fsio import write_json
from avdistill.training.run_dir import machine
from tables import filled
from tools import BrokenPromiseError, NotRunError, Pipeline

ROOT = Path(__file__).resolve().parents[2]
# Each with the command it disturbs.
FAULTS: list[tuple[Callable[[Pipeline], str], str]] = [
    (runs.killed_prepare, "prepare"),
    (runs.killed_embed, "embed"),
    (runs.killed_train, "train, resume"),
    (runs.killed_at_the_first_files, "resume, train"),
    (runs.killed_rank, "torchrun ... train, resume"),
    (machines.lost_node, "prepare --ray"),
    (machines.lost_job, "prepare --slurm"),
    (machines.lost_run, "compare --slurm"),
    (machines.lost_process, "prepare --part, embed, join"),
    (kills.killed_synthesize, "synthesize"),
    (kills.killed_compare, "compare"),
    (kills.killed_demo, "demo"),
    (kills.killed_results, "evaluate, audit, export"),
    (runs.full_disk_prepare, "prepare"),
    (runs.full_disk_embed, "embed"),
    (runs.full_disk_train, "train, resume"),
    (runs.full_disk_results, "synthesize, evaluate, audit, export, compare"),
    (files.read_only, "prepare"),
    (files.no_videos, "prepare"),
    (files.changed_clip_interrupted, "prepare"),
    (files.changed_clip_finished, "prepare"),
    (runs.two_prepare_at_once, "prepare"),
    (runs.two_train_at_once, "train"),
    (files.names, "prepare"),
    (files.hour_long, "prepare, predict"),
    (files.many_clips, "evaluate"),
    (files.lopsided, "prepare, embed"),
    (runs.not_finite, "train"),
    (files.mutated, "prepare"),
    (files.playlists, "prepare, predict"),
    (files.crafted_folders, "info, prepare, train, resume, evaluate, audit, ..."),
]


def row(fault: Callable[[Pipeline], str], command: str, pipeline: Pipeline) -> dict[str, Any]:
    """Run one fault."""
    began = time.monotonic()
    try:
        outcome, told = "held", fault(pipeline)
    except BrokenPromiseError as broken:
        outcome, told = "broken", str(broken)
    except NotRunError as lacking:
        outcome, told = "not run", str(lacking)
    except OSError as error:  # a file that ought to be there
        outcome, told = "broken", f"{type(error).__name__}: {error}"
    return {
        "fault": (fault.__doc__ or "").strip(),
        "name": fault.__name__,
        "command": command,
        "promise": outcome,
        "what_happened": told.replace(str(pipeline.work), "..."),
        "seed": pipeline.seed,
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> int:
    """All faults, or some."""
    parser = argparse.ArgumentParser(description="the fault list, to results/faults.json and docs/reliability.md")
    parser.add_argument("--clips", type=Path, help="folder of videos to mutate (default: generated ones)")
    parser.add_argument("--work", type=Path, help="folder to work in (default: a temporary one)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="names of faults, separated by commas; nothing is written")
    parser.add_argument("--update", action="store_true", help="with --only: replace their rows in the results")
    a = parser.parse_args()
    known = {fault.__name__: (fault, command) for fault, command in FAULTS}
    chosen = a.only.split(",") if a.only else list(known)
    if unknown := set(chosen) - set(known):
        parser.error(f"no fault {', '.join(sorted(unknown))}; faults: {', '.join(known)}")
    if a.clips is not None and not a.clips.is_dir():
        parser.error(f"{a.clips}: no such folder")

    rows = []
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        work = (a.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        pipeline = Pipeline(work, a.seed, None if a.clips is None else a.clips.resolve())
        for name in chosen:
            rows.append(row(*known[name], pipeline))
            latest = rows[-1]
            print(
                f"{latest['promise']:<8} {name:<26} {latest['seconds']:6.1f} s  {latest['what_happened']}", flush=True
            )
            if a.update or not a.only:
                report(rows, list(known))
    return int(any(entry["promise"] == "broken" for entry in rows))


def report(rows: list[dict[str, Any]], order: list[str]) -> None:
    """Write the rows of the results and the table of the document; other rows stay."""
    path, document = ROOT / "results" / "faults.json", ROOT / "docs" / "reliability.md"
    former = json.loads(path.read_text(encoding="utf-8"))["faults"]
    by_name = {row["name"]: row for row in [*former, *rows]}
    content = {
        "data": "60 synthetic clips of 2 s",
        "command": "python benchmarks/faults/run.py [--clips DIR]",
        "environment": machine(),
        "faults": [by_name[name] for name in order if name in by_name],
    }
    write_json(path, content)
    document.write_text(filled(document.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
