"""What a stranger needs: the report on an installation, completion, and extras that bring what they say."""

import importlib
import importlib.metadata
import json
import re
import shutil
import subprocess
import tomllib
import warnings
from pathlib import Path

import pytest

from avdistill.cli import VERBS, main
from avdistill.commands import completion, doctor
from avdistill.teachers.registry import TEACHERS
from avdistill.training.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# What extras for users bring; `dev` and `docs` bring programs as well, `panns` is for one comparison.
BROUGHT = sorted(
    {
        (extra, re.match(r"[\w.-]+", requirement)[0])
        for extra, requirements in PROJECT["optional-dependencies"].items()
        if extra not in ("dev", "docs", "panns")
        for requirement in requirements
        if not requirement.startswith("avdistill[")
    }
)


@pytest.mark.parametrize(("extra", "package"), BROUGHT, ids=["-".join(each) for each in BROUGHT])
def test_what_an_extra_brings_can_be_imported(extra, package):
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed: pip install 'avdistill[{extra}]'")
    names = {file.parts[0] for file in files if len(file.parts) == 2 and file.name == "__init__.py"}
    # A package of several: the one that has the distribution's name, where there is one.
    plain = package.replace("-", "_").lower()
    names = {name for name in names if name.lower() == plain} or names
    names = names or {file.stem for file in files if len(file.parts) == 1 and file.suffix == ".py"}
    assert names
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            importlib.import_module(name)


def test_doctor_reports_what_is_there(tmp_path, capsys):
    assert main(["doctor", "--folder", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    needed = {re.match(r"[\w.-]+", requirement)[0] for requirement in PROJECT["dependencies"]}
    there = {name for name in needed if report["packages"].get(name)}
    # The metadata may be of an older editable installation; what both name has the installed version.
    assert {"torch", "numpy", "av"} <= there
    assert all(report["packages"][name] == importlib.metadata.version(name) for name in there)
    assert report["teachers"] == {name: spec.available() for name, spec in TEACHERS.items()}
    assert report["disk"]["write_mb_per_s"] > 0
    assert report["disk"]["free_gb"] > 0
    assert report["decode"]["frames_per_second"] > 0
    assert report["decode"]["clip"].endswith("50 of 50 frames")
    assert list(tmp_path.iterdir()) == []
    assert "\n" not in report["paragraph"]
    assert str(tmp_path) not in report["paragraph"]
    out = "\n".join(doctor._lines(report))
    assert "For a bug report:" in out
    assert all(f"  {name}" in out for name in TEACHERS)


def test_doctor_refuses_a_folder_that_is_not_there(tmp_path, capsys):
    assert main(["doctor", "--folder", str(tmp_path / "nowhere")]) == 2
    assert re.fullmatch(
        r"avdistill: --folder .*nowhere: expected a folder to write to, found: .*\n", capsys.readouterr().err
    )


@pytest.fixture
def script(monkeypatch, capsys, tmp_path):
    """Writes the completion for a shell, of three verbs only: reading the help of all takes seconds."""
    monkeypatch.setattr(completion, "calls", lambda: [("info",), ("teacher", "probe"), ("train",)])

    def write(shell):
        assert main(["completion", shell]) == 0
        file = tmp_path / f"avdistill.{shell}"
        file.write_text(capsys.readouterr().out)
        return file

    return write


def test_bash_completes_verbs_recipes_and_options(script):
    program = """source "$1"; shift
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _avdistill; echo "${COMPREPLY[*]}" """
    file = script("bash")

    def completed(*words):
        done = subprocess.run(
            ["bash", "-c", program, "bash", file, "avdistill", *words], capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    assert completed("") == [*VERBS, "--help", "--version"]
    assert completed("pre") == [verb for verb in VERBS if verb.startswith("pre")]
    assert completed("train", "demo") == [name for name in RECIPES if name.startswith("demo")]
    assert completed("teacher", "p") == ["probe"]
    assert completed("teacher", "probe", "--s") == ["--split", "--seed"]
    assert completed("info", "--") == ["--json", "--verify", "--duplicates", "--help"]
    assert completed("info", "da") == []  # left to the names of files
    assert {"--dataset", "--steps", "--student.view.frames"} <= set(completed("train", "demo", "--"))


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_of_other_shells_are_read_by_them(shell, script):
    file = script(shell)
    assert "teacher" in file.read_text()
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not on this machine")
    subprocess.run([shell, "-n", file], check=True)
    if shell == "fish":
        asked = "source $argv[1]; complete -C 'avdistill teacher probe --s'"
        done = subprocess.run(["fish", "-c", asked, file], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["--seed", "--split"]
