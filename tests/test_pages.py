"""Every block of code on every page: the tutorial and README run as written, all other commands are parsed."""

import contextlib
import re
import shlex
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import tyro

from avdistill.cli import main
from avdistill.training.recipes import RECIPES
from support.distill_cases import make_small
from support.pages import PAGES, ROOT, blocks, commands

TESTS = ROOT / "tests"
#: page with Python -> the file of the test that runs its blocks; this one for pages whose blocks need what others made
PYTHON = {
    "README.md": "test_pages.py",
    "docs/tutorial.md": "test_pages.py",
    "docs/audit.md": "test_pages.py",
    "docs/search.md": "test_pages.py",
    "docs/checkpoints.md": "test_pages.py",
    "docs/licenses.md": "test_pages.py",
    "docs/formats/annotations.md": "test_pages.py",
    "docs/custom_method.md": "methods/test_custom.py",
    "docs/hub.md": "models/test_hub.py",
    "docs/use.md": "inference/test_export.py",
}
SMALL = {
    "synthesize": "--teacher-clips 24 --labeled-clips 24 --unlabeled-clips 24 --test-clips 12 --seconds 1",
    "teacher train": "--steps 3 --batch-size 4",
    "train": "--steps 2 --batch-size 4 --labeled-per-batch 2 --student.view.size 24 32 --student.view.frames 4 "
    "--student.model shifted_frames --student.options width 8",
    "compare": "--seeds 0 --threads 1 --base.steps 2 --base.batch-size 4 --base.student.view.size 24 32",
}


def run(line, python):
    """A command of a page, with numbers of clips and steps made small."""
    words = shlex.split(line, comments=True)[1:]
    if words[0] == "serve":
        assert "<h1>dataset: " in first_page(words, python)
        return
    small = SMALL.get(words[0], SMALL.get(" ".join(words[:2]), ""))
    assert main([*words, *shlex.split(small)]) == 0, line


def first_page(words, python):
    """What the server shows first, started by these words at a free port and ended."""
    command = [sys.executable, "-m", "avdistill", *words, "--port", "0"]
    with python.popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = re.search(r"http://\S+", process.stderr.readline())[0]
            with urllib.request.urlopen(address, timeout=30) as response:
                return response.read().decode()
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def small():
    """Few steps for what is trained by name."""
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch.setattr)
        student = replace(RECIPES["demo_mnf_csc"], steps=2, batch_size=4, labeled_per_batch=2)
        patch.setitem(RECIPES, "demo_mnf_csc", student)
        yield


@pytest.fixture(scope="module")
def walked(small, tmp_path_factory, warm_python):
    """The folder in which the commands of the tutorial were run, in order."""
    folder = tmp_path_factory.mktemp("tutorial")
    lines = [line for line in commands("docs/tutorial.md") if line.startswith("avdistill ")]
    verbs = [shlex.split(line)[1] for line in lines]
    assert verbs == [
        "doctor", "synthesize", "prepare", "info", "teacher", "embed", "teacher", "train", "train", "evaluate",
        "evaluate", "retrieve", "audit", "predict", "predict", "export", "export", "index", "serve",
    ]  # fmt: skip
    with contextlib.chdir(folder):
        for verb, line in zip(verbs, lines, strict=True):
            if verb != "doctor":  # tests/test_doctor.py
                run(line, warm_python)
    return folder


def test_readme_runs_as_written(walked, monkeypatch, warm_python):
    """Its later commands take up what the tutorial made."""
    monkeypatch.chdir(walked)
    lines = [line for line in commands("README.md") if line.startswith("avdistill ")]
    assert [shlex.split(line)[1] for line in lines] == [
        "synthesize", "distill", "predict", "compare", "audit", "index", "serve", "predict", "export",
    ]  # fmt: skip
    for line in lines:
        if line not in commands("docs/tutorial.md"):  # run already, as written
            run(line, warm_python)


@pytest.mark.parametrize("page", [page for page, file in PYTHON.items() if file == "test_pages.py"])
def test_python_of_a_page_runs(page, walked, monkeypatch, small_set):
    monkeypatch.chdir(walked)
    videos, _ = small_set
    for name in ("file.mp4", "video.mp4"):
        if not Path(name).exists():
            Path(name).symlink_to(videos / "test_2.mp4")
    if not Path("checkpoints").exists():
        Path("checkpoints").symlink_to(ROOT / "checkpoints")
    Path("clips.csv").write_text("path,label\nvideo.mp4,a\n", encoding="utf-8")
    Path("vggsound.csv").write_text('abcdefghijk,30,"bell",train\n', encoding="utf-8")
    Path("videos").mkdir(exist_ok=True)
    if page == "README.md" and not Path("distilled").exists():  # the test before makes it, unless it is run alone
        Path("distilled").symlink_to("run")
    names = {}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)


def test_every_page_with_python_names_the_test_that_runs_it():
    assert [page for page in PAGES if blocks(page, "python")] == sorted(PYTHON, key=PAGES.index)
    for page, file in PYTHON.items():
        assert Path(page).name in (TESTS / file).read_text(encoding="utf-8")


class ParsedError(Exception):
    pass


LINES = sorted({line for page in PAGES for line in commands(page) if line.startswith("avdistill ")})


def test_every_command_of_every_page_is_understood(taught, monkeypatch, tmp_path, capsys):
    """Verb, options and values, by the parser of the verb, which is then stopped."""
    original = tyro.cli

    def cli(kind, **settings):
        original(kind, **settings)
        raise ParsedError

    monkeypatch.setattr(tyro, "cli", cli)
    monkeypatch.chdir(tmp_path)
    for dataset in {found for line in LINES for found in re.findall(r"teacher train (\S+)", line)}:
        Path(dataset).symlink_to(taught.folder)  # it is opened before its options are read
    Path("cosine.py").write_text(blocks("docs/custom_method.md", "python")[0], encoding="utf-8")
    wrong = []
    for line in LINES:
        try:
            code = main(shlex.split(re.sub(r" > \S+$", "", line), comments=True)[1:])
        except ParsedError:
            continue
        except SystemExit as stopped:
            code = stopped.code
        if code:
            wrong.append(f"{line}: {capsys.readouterr().err}")
    assert len(LINES) > 80
    assert wrong == []
