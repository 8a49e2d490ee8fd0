"""What people read is what runs: README's commands, the example, generated tables."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution

import av.codec
from packaging.requirements import Requirement

from avdistill.methods import METHODS
from support.pages import ROOT, commands


def test_the_example_runs(taught, warm_python):
    example = ROOT / "examples" / "train_by_hand.py"
    done = warm_python.run([sys.executable, example, "--dataset", taught.folder, "--steps", "2"], text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"top-1 on 6 test clips: [01]\.\d+", done.stdout)


def test_readme_starts_with_the_two_commands_and_they_exist():
    told = commands("README.md")
    assert told[:2] == ["make demo", "make test"]
    for target in told[:2]:
        subprocess.run([*shlex.split(target), "-n"], cwd=ROOT, check=True, capture_output=True)


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


def test_tables_and_curves_are_those_of_the_results(warm_python):
    done = warm_python.run([sys.executable, ROOT / "benchmarks" / "results" / "tables.py", "--check"], text=True)
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


def test_every_page_is_reached_by_links_from_readme():
    """On the repository's pages, which have no navigation."""
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop().resolve()
        if page in reached:
            continue
        reached.add(page)
        links = re.findall(r"\]\(([^)#\s]+\.md)[^)]*\)", page.read_text(encoding="utf-8"))
        waiting += [page.parent / link for link in links if not link.startswith("http")]
    pages = {page.resolve() for page in (ROOT / "docs").rglob("*.md")}
    assert sorted(str(page.relative_to(ROOT)) for page in pages - reached) == []


def test_one_version_is_named():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
