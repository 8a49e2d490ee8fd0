"""Run `avdistill demo` and keep its figures: `results/demo.json` and the pictures of the README.

python benchmarks/demo.py --out DIR
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from avdistill.commands.console import progress_bar, say
from avdistill.data.files import write_json
from avdistill.decoding import encode
from avdistill.studies.demo import DEMO_DATA, run_demo
from avdistill.training.checkpoint import environment

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Everything the demo does, then two copies."""
    parser = argparse.ArgumentParser(description="the demo, recorded")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    result = run_demo(arguments.out, seeds=(0, 1, 2), workers=2, say=say, bar=progress_bar)
    told = {key: result[key] for key in ("students", "teacher", "test_clips")}
    write_json(
        ROOT / "results" / "demo.json",
        {
            "command": "python benchmarks/demo.py --out DIR (the same as avdistill demo --out DIR)",
            "environment": {k: v for k, v in environment().items() if k != "command"},
            "data": encode(DEMO_DATA),
            **told,
        },
    )
    pictures = ROOT / "docs" / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    for name in ("curves.png", "top1.png"):
        shutil.copy(arguments.out / name, pictures / f"demo-{name}")
    print(result["table"], file=sys.stdout)


if __name__ == "__main__":
    main()
