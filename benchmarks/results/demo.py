"""Run `avdistill demo` and keep its metrics: `results/demo.json`, and a plot for the documentation.

python benchmarks/results/demo.py --out DIR [--instructions scalar]

With `--instructions scalar` torch's own kernels use no vector instructions: sums are added in another order, as on
another machine, and from the last digits on the students differ. Its result is kept beside the other.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from avdistill.analysis.demo import DEMO_DATA, run_demo
from avdistill.commands.console import progress_bar
from avdistill.config_io import encode, read_json
from avdistill.fsio import write_json
from avdistill.training.run_dir import machine

ROOT = Path(__file__).resolve().parents[2]
INSTRUCTIONS = {"scalar": {"ATEN_CPU_CAPABILITY": "default"}}


def main() -> None:
    """Everything the demo does, then the copies."""
    parser = argparse.ArgumentParser(description="the demo, recorded")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--instructions", choices=INSTRUCTIONS, help="of torch's kernels; default: the machine's")
    a = parser.parse_args()
    settings = INSTRUCTIONS.get(a.instructions, {})
    if settings.items() - os.environ.items():  # torch reads them when it is imported
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | settings)
    result = run_demo(a.out, seeds=(0, 1, 2), workers=2, bar=progress_bar)
    print(result["table"])

    file, images = ROOT / "results" / "demo.json", ROOT / "docs" / "images"
    kept = {key: result[key] for key in ("students", "differences", "teacher", "test_clips")}
    recorded = {"environment": machine(), **kept}
    if a.instructions is not None:
        former = read_json(file)
        write_json(file, former | {"instructions": former.get("instructions", {}) | {a.instructions: recorded}})
        return
    command = "python benchmarks/results/demo.py --out DIR (the same as avdistill demo --out DIR)"
    write_json(file, {"command": command, "data": encode(DEMO_DATA), **recorded})
    images.mkdir(parents=True, exist_ok=True)
    shutil.copy(a.out / "study" / "top1_accuracy-clean.png", images / "demo-top1_accuracy.png")


if __name__ == "__main__":
    main()
