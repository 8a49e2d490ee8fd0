"""The commands of the page about clusters and of the files for Slurm and KubeRay exist, with all their options."""

import re
import shlex
import shutil
import subprocess
import warnings
from functools import cache
from pathlib import Path

import pytest
import tyro

from avdistill.cli import VERBS, main

ROOT = Path(__file__).resolve().parents[1]
FILES = ("docs/distributed.md", "examples/cluster/train.sbatch", "examples/cluster/kuberay.yaml")
# Taken before tyro reads the rest.
TAKEN = {"train": {"--resume"}, "compare": {"--recipe"}}


def commands(name):
    text = (ROOT / name).read_text().replace("\\\n", " ")
    if name.endswith(".yaml"):  # folded lines
        text = re.sub(r"\n    (?=--|&&)", " ", text)
    found = re.findall(rf"avdistill ((?:{'|'.join(VERBS)}) [^\n`&|\"]*--[^\n`&|\"]*)", text)
    return [shlex.split(words) for words in found]


class CalledError(Exception):
    pass


@cache
def options_of(verb, more):
    """The options of a verb as tyro knows them."""
    calls = []

    def cli(kind, **settings):
        calls.append((kind, settings))
        raise CalledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tyro, "cli", cli)
        with pytest.raises(CalledError):
            main([verb, *more])
    kind, settings = calls[0]
    settings = {name: value for name, value in settings.items() if name in ("default", "config", "prog")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        parser = tyro.extras.get_parser(kind, **settings)
    return {option for action in parser._actions for option in action.option_strings} | TAKEN.get(verb, set())


@pytest.mark.parametrize("name", FILES)
def test_the_options_exist(name):
    found = commands(name)
    assert found
    for verb, *words in found:
        asked = {word.partition("=")[0] for word in words if word.startswith("--")}
        more = tuple(word for word in words[:1] if verb == "train")  # a recipe
        assert asked <= options_of(verb, more), (verb, asked)


def test_the_kuberay_file_is_a_ray_job_whose_pods_share_a_volume():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    job = yaml.safe_load((ROOT / "examples" / "cluster" / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert {w for w in job["spec"]["entrypoint"].split() if w.startswith("/shared/")} >= {"/shared/dataset"}
    assert "\n" not in job["spec"]["entrypoint"]


def test_the_slurm_file_is_a_script():
    script = ROOT / "examples" / "cluster" / "train.sbatch"
    subprocess.run([shutil.which("bash"), "-n", script], check=True)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    assert "#SBATCH --requeue" in lines
