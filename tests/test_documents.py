"""What people read is what runs: README's commands, the example, generated tables."""

import json
import re
import shlex
import subprocess
import sys
import urllib.request
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import av.codec
from packaging.requirements import Requirement

from avdistill.cli import main
from avdistill.methods import METHODS
from support.distill_cases import make_small

ROOT = Path(__file__).resolve().parents[1]


def test_the_example_runs(taught):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "train_by_hand.py", "--dataset", taught.folder, "--steps", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"top-1 on 6 test clips: [01]\.\d+", done.stdout)


def commands(document):
    """The lines of the ```bash blocks, continuation lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def test_readme_starts_with_the_two_commands_and_they_exist():
    told = commands("README.md")
    assert told[:2] == ["make demo", "make test"]
    for target in told[:2]:
        subprocess.run([*shlex.split(target), "-n"], cwd=ROOT, check=True, capture_output=True)


def test_readme_street_runs_as_written(tmp_path, monkeypatch, capsys):
    """Every `avdistill` command of the README, in order, in one folder; numbers of clips and steps made small."""
    small = {
        "synthesize": "--teacher-clips 24 --labeled-clips 24 --unlabeled-clips 24 --test-clips 12 --seconds 1",
        "teacher": "--steps 3 --batch-size 4",
        "train": "--steps 2 --batch-size 4 --labeled-per-batch 2 --student.view.size 24 32",
        "compare": "--seeds 0 --threads 1 --base.steps 2 --base.batch-size 4 --base.student.view.size 24 32",
    }
    make_small(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)
    street = [shlex.split(line) for line in commands("README.md") if line.startswith("avdistill ")]
    assert [words[1] for words in street] == [
        "synthesize", "distill", "predict", "prepare", "info", "teacher", "embed", "train", "evaluate", "retrieve",
        "compare", "audit", "index", "serve", "predict", "export",
    ]  # fmt: skip
    for words in street:
        if words[1] == "serve":
            assert "<h1>dataset: " in first_page(words)
            continue
        extra = shlex.split(small.get(words[1], ""))
        assert main([*words[1:], *extra]) == 0, capsys.readouterr().err


def first_page(words):
    """What the server shows first, started by these words at a free port and ended."""
    command = [sys.executable, "-m", *words, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = re.search(r"http://\S+", process.stderr.readline())[0]
            with urllib.request.urlopen(address, timeout=30) as response:
                return response.read().decode()
        finally:
            process.terminate()


def needed(name, found):
    """What a package needs, and what that needs, without extras nobody asked for."""
    try:
        package = distribution(name)
    except PackageNotFoundError:
        return found
    if package.metadata["Name"] not in found:
        found[package.metadata["Name"]] = package.metadata
        for requirement in map(Requirement, package.requires or []):
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in WANTED):
                needed(requirement.name, found)
    return found


WANTED = ("", "cublas", "cudart", "cufft", "cufile", "cupti", "curand", "cusolver", "cusparse", "nvjitlink", "nvrtc")


def test_the_page_of_licenses_names_what_is_not_permissive():
    """By the metadata of the installed packages, and the encoders that this PyAV has."""
    page = (ROOT / "docs" / "licenses.md").read_text()
    for name, metadata in needed("avdistill", {}).items():
        license_ = " ".join(metadata.get_all("License-Expression", []) + metadata.get_all("License", []))
        classifiers = " ".join(metadata.get_all("Classifier", []))
        if re.search(
            r"proprietary|\bA?GPL|General Public", f"{license_.splitlines()[:1]} {classifiers}", re.IGNORECASE
        ):
            assert f"`{re.sub(r'-cu[0-9]+$', '', name.replace('_', '-'))}`" in page
    for encoder in {"libx264", "libx265", "libxvid"} & set(av.codec.codecs_available):
        assert f"`{encoder}`" in page


def test_tables_and_curves_are_those_of_the_results():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "results" / "tables.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_results_say_how_they_were_made():
    files = sorted((ROOT / "results").glob("*.json"))
    assert files
    for file in files:
        told = json.loads(file.read_text())
        parts = [told] if "environment" in told else [part for part in told.values() if "environment" in part]
        assert parts
        for part in parts:
            assert told.get("command") or part["command"]
            assert part["environment"]["packages"]["torch"]
            found = [part[name] for name in ("students", "runs", "faults", "rows") if name in part]
            (rows,) = found or [part["methods"]]
            assert rows
            # A row of `methods`, as `distill` reports it, is a mean over the seeds 0 to n - 1.
            assert all("seed" in row or row["n"] for row in rows)


def test_every_method_is_on_the_page_of_methods_with_what_it_needs():
    page = (ROOT / "docs" / "methods" / "README.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| .*? \| (\w+) \| \[\w+\]\(\w+\.md\) \|$", page, re.MULTILINE))
    assert rows == {name: str(method.requires(method.config_class())) for name, method in METHODS.items()}


def test_links_between_documents_lead_somewhere():
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for document in documents:
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
            if not link.startswith(("http", "mailto")):
                assert (document.parent / link).exists(), f"{document.relative_to(ROOT)}: {link}"
