"""The command line: a table of verbs. The module of a verb is imported when the verb is called."""

import os
import sys
from importlib import import_module

# verb: (module:function, what it does)
VERBS: dict[str, tuple[str, str]] = {
    "synthesize": ("dataset:synthesize", "make videos of moving objects with matched and mismatched audio"),
    "prepare": ("dataset:prepare", "read videos and a list of clips into a dataset of frames and audio"),
    "join": ("dataset:join", "make one dataset of the parts that `prepare --part` made"),
    "fetch": ("storage:fetch_folder", "copy a dataset, a run or an index from an object storage"),
    "info": ("dataset:info", "describe a dataset and verify its checksums"),
    "teacher": ("teachers:teacher", "train a teacher, probe its embeddings, or list the pretrained ones"),
    "embed": ("embed:embed", "add a teacher's embeddings and logits to a dataset"),
    "train": ("train:train", "train a student: `train RECIPE --dataset DATASET --out RUN`"),
    "resume": ("train:resume", "continue an interrupted run exactly"),
    "track": ("track:track", "send metrics of a run to trackio, W&B, MLflow or TensorBoard"),
    "evaluate": ("evaluate:evaluate", "compute classification metrics of a model on a dataset"),
    "retrieve": ("evaluate:retrieve", "compute retrieval metrics of a model on a dataset"),
    "audit": ("audit:audit", "rank clips by how likely their audio is mismatched"),
    "suggest": ("labels:suggest", "choose the clips to label next"),
    "relabel": ("labels:relabel", "copy a dataset with labels of a list"),
    "compare": ("compare:compare", "train several methods alike and test which are better"),
    "corrupt": ("compare:corrupt", "copy a dataset with mismatched, dropped, shifted or noisy audio, or fewer labels"),
    "predict": ("predict:predict", "label video and audio files, as a whole and over time"),
    "serve": ("serve:serve", "start a web server to look, search, label uploads and review an audit"),
    "publish": ("hub:publish", "put a student with a model card on the Hugging Face hub"),
    "list": ("hub:list_students", "list the students in a folder, or on the hub"),
    "export": ("predict:export", "write a student as ONNX or safetensors and compare the two"),
    "index": ("search:index", "index the clips of datasets and runs for searching"),
    "search": ("search:search", "find the clips nearest to a file, a clip, a label or a text"),
    "reference": ("reference:reference", "import the paper's released files and compute its metrics"),
    "distill": ("distill:distill", "distill a small student from a folder of videos with few labels, with a report"),
    "demo": ("demo:demo", "run the whole pipeline on synthetic videos and write a report"),
    "recipes": ("train:recipes", "list recipes, models and methods"),
    "doctor": ("doctor:doctor", "describe this installation and machine, for a bug report"),
    "completion": ("completion:completion", "print the completion of verbs and options for bash, zsh or fish"),
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
