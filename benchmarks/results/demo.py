"""Run `avdistill demo` and keep its metrics: `results/demo.json`, and a plot for the documentation.

python benchmarks/results/demo.py --out DIR
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from avdistill.analysis.demo import DEMO_DATA, run_demo
from avdistill.commands.console import progress_bar
from avdistill.config_io import encode
from avdistill.fsio import write_json
from avdistill.training.run_dir import machine

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Everything the demo does, then the copies."""
    parser = argparse.ArgumentParser(description="the demo, recorded")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    result = run_demo(arguments.out, seeds=(0, 1, 2), workers=2, bar=progress_bar)
    told = {key: result[key] for key in ("students", "differences", "teacher", "test_clips")}
    write_json(
        ROOT / "results" / "demo.json",
        {
            "command": "python benchmarks/results/demo.py --out DIR (the same as avdistill demo --out DIR)",
            "environment": machine(),
            "data": encode(DEMO_DATA),
            **told,
        },
    )
    images = ROOT / "docs" / "images"
    images.mkdir(parents=True, exist_ok=True)
    shutil.copy(arguments.out / "study" / "top1_accuracy-clean.png", images / "demo-top1_accuracy.png")
    print(result["table"], file=sys.stdout)


if __name__ == "__main__":
    main()
