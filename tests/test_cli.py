"""The command line, as a person uses it: every verb, exit codes, one JSON object on standard output."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from avdistill.cli import VERBS, main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import DatasetError, NoTokensError, TeacherError
from avdistill.inputs import AudioInput
from avdistill.models.checkpoint import save_student
from avdistill.models.registry import build_model
from avdistill.types import StudentConfig


@pytest.fixture
def run(capsys):
    """Call a verb in this process (importing torch for each would take most of the time) and read what it prints."""

    def call(*arguments, code=0):
        capsys.readouterr()
        assert main([str(a) for a in arguments]) == code, capsys.readouterr().err
        return capsys.readouterr()

    return call


def test_help_lists_the_verbs_without_importing_torch():
    program = "import sys; from avdistill.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert re.findall(r"^  (\w+)", done.stdout, re.MULTILINE) == list(VERBS)
    expected = [
        "synthesize",
        "prepare",
        "join",
        "fetch",
        "info",
        "teacher",
        "embed",
        "train",
        "resume",
        "track",
        "evaluate",
        "retrieve",
        "audit",
        "suggest",
        "relabel",
        "compare",
        "corrupt",
        "predict",
        "serve",
        "publish",
        "list",
        "export",
        "index",
        "search",
        "reference",
        "distill",
        "demo",
        "recipes",
        "doctor",
        "completion",
    ]
    assert list(VERBS) == expected


def test_wrong_calls_are_one_line_and_code_2(tmp_path, capsys):
    assert main(["dance"]) == 2
    assert "no verb 'dance'" in capsys.readouterr().err
    assert main(["train", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("avdistill: no recipe 'nothing'; recipes: ucf51, ucf51_supervised")
    config = tmp_path / "config.json"
    config.write_text('{"dataset": "s", "out": "o", "stepz": 3}')
    assert main(["train", "--config", str(config)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("avdistill: config.stepz: unknown key")
    assert error.count("\n") == 1
    nowhere = ["--out", str(tmp_path / "dataset")]
    for words, message in (
        (["prepare", str(tmp_path), "--videos", str(tmp_path), *nowhere, "--fps", "-3"], "fps must lie between"),
        (["prepare", str(tmp_path), "--videos", str(tmp_path), *nowhere, "--short-side", "0"], "one pixel"),
        (["synthesize", *nowhere, "--noisy", "2"], "shares"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "dataset.partial").exists()
    assert main(["info", str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == "0.1.0"


def test_the_street_by_hand(tmp_path, run):
    """synthesize, prepare, info, teacher, embed, train, resume, evaluate, retrieve on a few tiny clips."""
    sizes = ["--teacher-clips", 24, "--labeled-clips", 12, "--unlabeled-clips", 12, "--test-clips", 12]
    made = run("synthesize", "--out", tmp_path / "data", *sizes, "--seconds", 1, "--workers", 2, "--json")
    told = json.loads(made.out)
    assert told["clips"] == 60
    prepared = run(
        "prepare", told["annotations"], "--videos", told["videos"], "--out", tmp_path / "dataset",
        "--fps", 8, "--short-side", 32, "--json",
    )  # fmt: skip
    report = json.loads(prepared.out)
    assert report["clips"] == 60
    assert report["splits"] == {"teacher": 24, "test": 12, "train": 24}
    assert report["labeled"] == 48
    tiny = ["--steps", 3, "--batch-size", 4]
    teacher = ["--out", tmp_path / "teacher", *tiny, "--student.view.seconds", 0.5, "--student.options", "width", 8]
    run("teacher", "train", tmp_path / "dataset", *teacher)
    embedded = json.loads(run("embed", tmp_path / "dataset", "--teacher", tmp_path / "teacher", "--json").out)
    assert embedded["name"] == "audio"
    assert json.loads(run("info", tmp_path / "dataset", "--json").out)["faults"] == []
    view = ["--student.view.size", 24, 32, "--student.view.frames", 4]
    common = ["--dataset", tmp_path / "dataset", *tiny, *view, "--method.temperature", "sample"]
    run("train", "tiny_mnf_csc", "--out", tmp_path / "run", *common)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["method"]["temperature"] == "sample"
    assert config["student"]["view"]["size"] == [24, 32]
    run("resume", tmp_path / "run")
    evaluated = run("evaluate", tmp_path / "run", tmp_path / "dataset", "--json")
    metrics = json.loads(evaluated.out)
    assert 0 <= metrics["top1_accuracy"] <= metrics["top5_accuracy"] <= 1
    assert metrics["clips"] == 12
    written = {p.name for p in (tmp_path / "run" / "evaluation-test").iterdir()}
    assert written == {"provenance.json", "metrics.json", "confusion.png", "predictions.csv", "per_class.csv"}
    found = json.loads(run("retrieve", tmp_path / "run", tmp_path / "dataset", "--json").out)
    assert {"hit@1", "map", "map@R"} <= set(found)
    assert "top-1" in run("evaluate", tmp_path / "run", tmp_path / "dataset").out
    again = tmp_path / "with_teacher"
    listed = [
        "prepare",
        told["annotations"],
        "--videos",
        told["videos"],
        "--out",
        again,
        "--fps",
        8,
        "--short-side",
        32,
    ]
    assert "60 clips of 60 videos" in run(*listed, "--teacher", tmp_path / "teacher").out
    assert list(ClipDataset(again).teachers) == ["teacher"]
    again = run("train", "tiny_mnf_csc", "--out", tmp_path / "run", *common, code=1)
    assert again.err.strip().splitlines()[-1].endswith("`avdistill resume` continues a run")


def test_recipes_are_listed(run):
    told = json.loads(run("recipes", "--json").out)
    assert {"ucf51_mnf_csc", "activitynet_mnf_csc", "demo_kd", "audio_teacher"} <= set(told["recipes"])
    assert told["methods"]["kd"]["temperature"] == 4.0


def test_embeddings_from_files_have_no_maps(taught, tmp_path, capsys):
    assert main(["embed", str(taught.folder), "--teacher", f"precomputed:{tmp_path}", "--tokens"]) == 2
    assert "holds embeddings, no tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("train demo_supervised --dataset {dataset} --out {out} --device cuda:9", 2, "no GPU"),
        ("train demo_supervised --dataset {dataset} --out {out} --device gpu", 2, "expected auto, cpu, cuda"),
        (
            "train demo_supervised --dataset {dataset} --out {out} --student.view.frames 0",
            2,
            "at least 1, got 0 frames",
        ),
        (
            "train demo_supervised --dataset {dataset} --out {out} --optimizer.learning-rate -1",
            2,
            "must be above 0, got -1",
        ),
        (
            "train demo_kd --dataset {dataset} --out {out} --method.temperature -1",
            2,
            "temperature: expected a number above 0",
        ),
        ("train --config {binary} --out {out}", 2, "not JSON"),
        ("teacher train {dataset} --out {out} --student.view.seconds 0", 2, "view.seconds: must be above 0"),
        ("prepare {list} --videos {here} --out {out} --teacher nothere", 1, "nothere"),
        ("prepare {list} --videos {out} --out {out}", 2, "--videos: expected a folder"),
        ("evaluate nothere {dataset}", 1, "nothere: no trained network"),
        ("teacher probe nothere.npz", 1, "avdistill: nothere.npz: No such file"),
        ("compare {dataset} --out {out} --methods supervised --workers 0", 2, "at least 1, got 0"),
        ("synthesize --out {out} --seconds 0", 2, "seconds and fps must be above 0"),
        ("synthesize --out {out} --sample-rate-hz 1234", 2, "must be one of 8000"),
        ("demo --out {out} --seeds", 2, "at least one seed"),
        ("train demo_supervised --dataset {dataset} --out {out} --seed -1", 2, "seed: must not be negative"),
        ("synthesize --out {out} --seed -1", 2, "seed: must not be negative"),
        ("corrupt {dataset} mismatched=0.4,seed=-1 --out {out}", 2, "seed must be at least 0"),
        ("corrupt {dataset} noisy=0.4,snr_db=nan --out {out}", 2, "snr_db must be a finite number"),
        ("prepare {list} --videos {here} --out {out} --teacher {run} {other}/run", 2, "two have the name 'run'"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_made(taught, tmp_path, capsys, monkeypatch, words, code, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "list.csv").write_text("clip_id,path,label,split\na,a.mp4,cat,train\n")
    places = {"dataset": taught.folder, "out": tmp_path / "out", "binary": tmp_path / "binary"}
    places |= {"list": tmp_path / "list.csv", "here": tmp_path, "run": tmp_path / "run", "other": tmp_path / "other"}
    for folder in (places["run"], places["other"] / "run"):
        folder.mkdir(parents=True)
        view = AudioInput(seconds=0.5)
        about = StudentConfig("logmel_cnn", ("a", "b"), view, 10.0, 16000, options={"width": 8})
        save_student(folder, build_model("logmel_cnn", 2, {"width": 8}), about)
    try:
        found = main(words.format(**places).split())
    except SystemExit as error:  # of the parser of options
        found = error.code
    error = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert (found, message in error, "Traceback" in error) == (code, True, False), error
    assert not (tmp_path / "out").exists()


def test_a_dataset_with_a_shard_cut_short_is_told_of_in_full(taught, tmp_path, capsys):
    folder = shutil.copytree(taught.folder, tmp_path / "dataset")
    shards = sorted(folder.glob("frames-*.npy"))
    for shard in shards:
        shard.write_bytes(shard.read_bytes()[:200])
    next(iter(folder.glob("audio-*.npy"))).unlink()
    assert main(["info", str(folder), "--json"]) == 1
    told = capsys.readouterr()
    assert {fault.split(":")[0] for fault in json.loads(told.out)["faults"]} == {
        *(shard.name for shard in shards),
        "audio-00000.npy",
    }
    assert told.err.strip().splitlines()[-1].startswith(f"avdistill: {folder}: damaged: ")
    assert main(["info", str(folder), "--no-verify"]) == 1
    assert "damaged or missing" in capsys.readouterr().err
    with pytest.raises(DatasetError, match=r"frames-00000\.npy: damaged or missing"):
        ClipDataset(folder).frames(0)


@pytest.mark.parametrize("here", [".", ".."])
def test_a_folder_without_a_dataset_is_one_line(taught, tmp_path, monkeypatch, capsys, here):
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    for words in (["info", here], ["corrupt", str(taught.folder), "mismatched=0.4", "--out", here]):
        assert main(words) == 1
        assert "no dataset here" in capsys.readouterr().err
    (tmp_path / "list.csv").write_text("clip_id,path,label,split\na,a.mp4,cat,train\n")
    assert main(["prepare", "../list.csv", "--videos", "..", "--out", here]) == 1
    assert "no dataset here" in capsys.readouterr().err


def test_a_reader_who_has_seen_enough_ends_it_quietly(taught):
    program = "import sys; from avdistill.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", program, "info", str(taught.folder)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.close()
        told = running.stderr.read().decode()
        assert running.wait() == 1
    assert "roken" not in told


def call(*words, **environment):
    words = [sys.executable, "-m", "avdistill", *map(str, words)]
    environment = {**os.environ, **environment}
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment, timeout=120)


def test_a_rank_without_other_processes_is_the_first(taught):
    done = call("info", taught.folder, "--no-verify", "--json", RANK="1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["clips"] == len(taught)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_verb_that_cannot_share_its_work_refuses_several_processes(taught, rank):
    for words in (["info", taught.folder], ["teacher", "probe", taught.folder]):
        done = call(*words, WORLD_SIZE="2", RANK=rank)
        assert (done.returncode, done.stdout) == (2, "")
        message = f"avdistill: {words[0]}: expected one process, found WORLD_SIZE=2; omit torchrun\n"
        assert done.stderr == (message if rank == "0" else "")


def test_an_interrupt_is_code_130(monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("avdistill.commands.console.run", interrupted)
    assert main(["recipes"]) == 130
    assert capsys.readouterr().err == "avdistill: interrupted\n"


def test_only_what_a_user_can_mend_is_one_line(monkeypatch, capsys):
    for error, code in ((TeacherError("no teacher"), 1), (NoTokensError("no tokens"), 1), (OSError("disk"), 1)):
        monkeypatch.setattr("avdistill.commands.train.recipes", lambda _arguments, error=error: raise_(error))
        assert main(["recipes"]) == code
        assert capsys.readouterr().err == f"avdistill: {error}\n"
    for mistake in (ValueError("ours"), RuntimeError("ours")):
        monkeypatch.setattr("avdistill.commands.train.recipes", lambda _arguments, error=mistake: raise_(error))
        with pytest.raises(type(mistake), match="ours"):
            main(["recipes"])


def raise_(error):
    raise error
