"""The command line: a table of verbs. A verb's module is imported when it is called, so `--help` costs nothing."""

from __future__ import annotations

import os
import sys
from importlib import import_module

# verb: (module:function, what it does)
VERBS: dict[str, tuple[str, str]] = {
    "synthesize": ("dataset:synthesize", "make videos of moving things with related and mismatched audio"),
    "prepare": ("dataset:prepare", "videos and a list -> a dataset of frames and audio"),
    "info": ("dataset:info", "describe a dataset and verify its checksums"),
    "teacher": ("teachers:teacher", "train a teacher, or look at what one knows: `teacher train`, `teacher probe`"),
    "embed": ("train:embed", "put a teacher's embeddings and logits into a dataset"),
    "train": ("train:train", "train a student: `train RECIPE --dataset DATASET --out RUN`"),
    "resume": ("train:resume", "continue an interrupted run exactly"),
    "evaluate": ("evaluate:evaluate", "classification metrics of a run on a dataset"),
    "retrieve": ("evaluate:retrieve", "retrieval metrics of a run on a dataset"),
    "audit": ("audit:audit", "rank a dataset's clips by how little their audio says about their video"),
    "compare": ("compare:compare", "many methods, seeds and corruptions on one dataset: which help?"),
    "corrupt": (
        "compare:corrupt",
        "a copy of a dataset with audio mismatched, dropped, shifted in time or noisy, or fewer labels",
    ),
    "predict": ("predict:predict", "label video files with a run: each whole, and what is when"),
    "export": ("predict:export", "the student alone as ONNX or safetensors, compared with the run"),
    "reference": ("reference:reference", "files and metrics of the paper's released implementation"),
    "demo": ("evaluate:demo", "the whole pipeline on synthetic videos, with a report"),
    "recipes": ("train:recipes", "list recipes, models and methods"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a verb.

    Returns:
        The exit code: 0, 1 for a failure (one line on standard error), 2 for a wrong call, 130 after Ctrl-C.
    """
    try:
        code = _main(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # `avdistill ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as interrupt:
        print(f"avdistill: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 130
    return code


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: avdistill VERB ...    (avdistill VERB --help)\n")
        print("\n".join(f"  {verb:<12}{help_line}" for verb, (_, help_line) in VERBS.items()))
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(import_module("importlib.metadata").version("avdistill"))
        return 0
    if arguments[0] not in VERBS:
        print(f"avdistill: no verb {arguments[0]!r}; verbs: {', '.join(VERBS)}", file=sys.stderr)
        return 2
    module, function = VERBS[arguments[0]][0].split(":")
    return int(import_module("avdistill.commands.console").run(arguments[0], module, function, arguments[1:]))


if __name__ == "__main__":
    sys.exit(main())
