"""What both agents start in test_distributed.py: `avdistill train --config FILE --resume`.

agent.py DATASET RUN VICTIM    with VICTIM "True" the process and its agent are killed after step 5, as by a power cut
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from two_processes import config

from avdistill import cli
from avdistill.commands import train
from avdistill.config_io import encode

KILLED_AFTER = 5
training_bar = train.training_bar


@contextmanager
def disturbed_bar(title: str, steps: int) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    with training_bar(title, steps) as on_step:

        def disturbed(step: int, losses: Mapping[str, float]) -> None:
            on_step(step, losses)
            if step == KILLED_AFTER:
                os.kill(os.getppid(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)

        yield disturbed


if __name__ == "__main__":
    dataset, run, victim = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "True"
    if victim:
        train.training_bar = disturbed_bar
    file = run.with_name(f"config-{os.getpid()}.json")
    file.write_text(json.dumps(encode(config(dataset, run))))
    sys.exit(cli.main(["train", "--config", str(file), "--resume"]))
