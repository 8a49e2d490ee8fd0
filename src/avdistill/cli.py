"""The command line: a table of verbs. A verb's module is imported when it is called, so `--help` costs nothing."""

from __future__ import annotations

import os
import sys
from importlib import import_module

# verb: (module:function, what it does)
VERBS: dict[str, tuple[str, str]] = {
    "synthesize": ("data:synthesize", "make videos of moving things with related and unrelated sound"),
    "prepare": ("data:prepare", "videos and a list -> a store of frames and sound"),
    "import": ("release:import_", "the released implementation's clips or checkpoint -> store or run"),
    "info": ("data:info", "describe a store and verify its checksums"),
    "teacher": ("teachers:teacher", "train a teacher, or look at what one knows: `teacher train`, `teacher probe`"),
    "embed": ("runs:embed", "put a teacher's embeddings and logits into a store"),
    "train": ("runs:train", "train a student: `train RECIPE --store STORE --out RUN`"),
    "resume": ("runs:resume", "continue an interrupted run exactly"),
    "evaluate": ("figures:evaluate", "classification figures of a run on a store"),
    "retrieve": ("figures:retrieve", "retrieval figures of a run on a store"),
    "audit": ("audit:audit", "rank a store's clips by how little their sound says about their picture"),
    "compare": ("compare:compare", "many methods, seeds and conditions on one store: which help?"),
    "condition": ("compare:condition", "a copy of a store with sounds swapped, silent or drowned, or fewer labels"),
    "predict": ("use:predict", "label video files with a run: each whole, and what is when"),
    "export": ("use:export", "the student alone as ONNX or safetensors, compared with the run"),
    "demo": ("figures:demo", "the whole pipeline on synthetic videos, with a report"),
    "recipes": ("runs:recipes", "list recipes, models and methods"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; returns the exit code: 0, 1 for a failure said in one line, 2 for a wrong call."""
    try:
        code = _main(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # `avdistill ... | head`: whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
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
    return int(import_module("avdistill.commands.console").run(module, function, arguments[1:]))


if __name__ == "__main__":
    sys.exit(main())
