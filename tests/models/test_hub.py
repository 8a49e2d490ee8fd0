"""Students on a hub: a fake one on the loopback address stands for the real one."""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from avdistill import HubError, Student, export, load_teacher
from avdistill.cli import main
from avdistill.errors import CheckpointError, TeacherError
from avdistill.integrations.model_card import CardOptions
from avdistill.integrations.publish import publish
from avdistill.models.hub import local_folder, parse_address
from avdistill.teachers.convert import convert_teacher
from avdistill.training import train
from support.pages import blocks
from support.training_cases import config

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: pip install avdistill[huggingface]")
from huggingface_hub import constants

from support.fake_hub import fake_hub

# httpx2 deprecates how huggingface_hub 2.4 uploads.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
NAME = "lab/student"


@pytest.fixture(scope="module")
def trained(taught, tmp_path_factory):
    """A run with results of `evaluate` and `retrieve`."""
    out = tmp_path_factory.mktemp("trained") / "run"
    run = train(config(taught.folder, out, steps=2, teacher="audio", eval_every=100))
    for verb in ("evaluate", "retrieve"):
        assert main([verb, str(run), str(taught.folder)]) == 0
    return run


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with fake_hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        yield running


@pytest.fixture(scope="module")
def video(small_set):
    folder, annotations = small_set
    return folder / annotations[0].path


def student_files(run):
    return {name: (run / "best" / name).read_bytes() for name in ("config.json", "model.safetensors")}


def test_a_published_student_predicts_alike_elsewhere_and_offline(hub, trained, video, tmp_path, capsys, warm_python):
    """Published, loaded into an empty cache, and by a process that has the cache alone."""
    words = ["--license", "apache-2.0", "--data", "Moving squares, made by a test.", "--json"]
    assert main(["publish", str(trained), NAME, *words]) == 0
    address = json.loads(capsys.readouterr().out)["address"]
    assert address.startswith(f"hf://{NAME}@")
    files = hub.repositories[NAME].commits[address.rpartition("@")[2]]
    assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors", "preprocessing.json"}
    assert files["model.safetensors"] in hub.lfs.values()  # not as text within the commit

    expected = json.loads(json.dumps(Student.from_pretrained(trained).predict(video).describe()))
    assert main(["predict", f"hf://{NAME}", str(video), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == expected
    asked = len(hub.requests)
    offline = warm_python.run(
        [sys.executable, "-m", "avdistill", "predict", f"hf://{NAME}", str(video), "--json"],
        text=True,
        env=os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert offline.returncode == 0, offline.stderr
    assert json.loads(offline.stdout) == expected
    assert len(hub.requests) == asked


def test_a_student_is_pushed_to_a_branch_and_loaded_by_branch_and_commit(hub, trained):
    student = Student.from_pretrained(trained, "cpu")
    address = student.push_to_hub(NAME, revision="trial", private=True, card="---\nlicense: mit\n---\n")
    assert hub.repositories[NAME].private
    expected = student.network.state_dict()
    for name in (address, f"hf://{NAME}@trial", Path(f"hf://{NAME}@trial")):
        found = Student.from_pretrained(name, "cpu")
        assert found.config == student.config
        assert all(torch.equal(value, expected[key]) for key, value in found.network.state_dict().items())
    with pytest.raises(HubError, match=r"hf://lab/student: expected config\.json and model\.safetensors, found \.gita"):
        Student.from_pretrained(f"hf://{NAME}")  # the main branch holds nothing
    with pytest.raises(HubError, match="no such revision"):
        Student.from_pretrained(f"hf://{NAME}@none")


def test_evaluate_and_retrieve_take_an_address(hub, trained, taught, tmp_path, monkeypatch, capsys):
    hub.put(NAME, student_files(trained))
    monkeypatch.chdir(tmp_path)
    for verb, folder in (("evaluate", "evaluation-test"), ("retrieve", "retrieval-test")):
        assert main([verb, f"hf://{NAME}", str(taught.folder), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        metrics = json.loads((trained / folder / "metrics.json").read_text())
        assert found == {"model": f"hf://{NAME}", "dataset": str(taught.folder), **metrics}
        assert (tmp_path / "student" / folder / "metrics.json").is_file()


def test_the_python_of_docs_hub_md_runs(hub, trained, video, tmp_path, monkeypatch, capsys):
    hub.put("org/name", student_files(trained), "v1")
    monkeypatch.chdir(tmp_path)
    Path("video.mp4").symlink_to(video)
    (block,) = blocks("docs/hub.md", "python")
    exec(block, {})
    assert capsys.readouterr().out.startswith("video.mp4: ")


def test_a_student_on_the_hub_is_exported_and_is_a_teacher(hub, trained, tmp_path):
    hub.put(NAME, student_files(trained))
    export(f"hf://{NAME}", tmp_path / "out", format="safetensors")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == student_files(trained)["model.safetensors"]
    teacher = load_teacher(f"hf://{NAME}")
    assert teacher.provenance["name"] == f"shifted_frames of hf://{NAME}"
    weights = hashlib.sha256(student_files(trained)["model.safetensors"]).hexdigest()
    assert teacher.provenance["weights_sha256"] == weights


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a/b/model.pkl", "modeling.py", "weights.PT", "data", "x.ckpt"])
def test_a_repository_with_a_pickle_or_code_is_refused(hub, trained, video, name, capsys):
    hub.put(NAME, student_files(trained) | {"README.md": b"", name: b"import os"})
    assert main(["predict", f"hf://{NAME}", str(video)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    expected = "refused: expected weights as safetensors, texts and images alone, found"
    assert line == f"avdistill: hf://{NAME}: {expected} {name}, which may be a pickle or code"
    assert not any("resolve" in request for request in hub.requests)


def test_a_snapshot_with_a_pickle_in_the_cache_is_refused(hub, trained):
    hub.put(NAME, student_files(trained))
    folder = local_folder(f"hf://{NAME}")
    (folder / "model.pkl").write_bytes(b"")
    with pytest.raises(HubError, match=r"found model\.pkl"):
        Student.from_pretrained(f"hf://{NAME}")


def test_a_config_of_somebody_else_is_one_line(hub, trained):
    hub.put(NAME, student_files(trained) | {"config.json": b'{"model_type": "bert", "auto_map": {}}'})
    with pytest.raises(CheckpointError, match="unknown key"):
        Student.from_pretrained(f"hf://{NAME}")


@pytest.mark.parametrize("address", ["hf://lab", "hf://lab/a/b", "hf://lab/a@", "hf://la b/c", "hf://../x@../../y z"])
def test_addresses_that_are_none(address):
    with pytest.raises(HubError, match="expected hf://org/name"):
        parse_address(address)
    assert parse_address("hf://org/na.me@refs/pr/1") == ("org/na.me", "refs/pr/1")


def test_what_is_not_there_or_not_reached_is_one_line(hub, monkeypatch):
    with pytest.raises(HubError, match=r"hf://lab/none: no such repository, or no right to it"):
        local_folder("hf://lab/none")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the port that discards
    with pytest.raises(HubError, match="the hub is not reached, and the cache does not hold it"):
        local_folder("hf://lab/none")


def test_students_are_listed_in_a_folder_and_on_the_hub(hub, trained, capsys):
    publish(trained, NAME, card=CardOptions(license="mit"))
    hub.put("other/model", {"README.md": b"---\ntags: [a]\n---\n"})
    assert main(["list", "--remote", "--author", "lab", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["students"]
    expected = {"address": f"hf://{NAME}", "modality": "video", "license": "mit", "modified": "2026-11-28"}
    assert found == expected | {"downloads": 3}
    assert main(["list", str(trained.parent), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["students"]
    assert (row["student"], row["modality"], row["classes"]) == (str(trained), "video", 3)


def test_the_card_says_what_the_run_recorded(hub, trained, taught, tmp_path):
    assert main(["audit", str(trained), str(taught.folder), "--by", "disagreement"]) == 0
    words = ["--data", "Squares | circles", "--limits", "Never on Mondays.", "--out", str(tmp_path / "out")]
    assert main(["publish", str(trained), NAME, *words]) == 0
    assert NAME not in hub.repositories
    card = (tmp_path / "out" / "README.md").read_text()
    metadata = card.split("---\n")[1]
    assert '\nmodel-index: [{"name": "student"' in metadata
    assert "license" not in metadata
    metrics = json.loads((trained / "evaluation-test" / "metrics.json").read_text())
    low, high = metrics["top1_accuracy_interval"]
    assert f"| top-1 accuracy | {metrics['top1_accuracy']:.3f} | {low:.3f} to {high:.3f} |" in card
    retrieved = json.loads((trained / "retrieval-test" / "metrics.json").read_text())
    assert f"| mean average precision | {retrieved['map']:.3f} | – |" in card
    assert hashlib.sha256((tmp_path / "out" / "model.safetensors").read_bytes()).hexdigest() in card
    data = json.loads((trained / "data.json").read_text())
    for part in (
        f"{len(data['training'])} clips to train ({data['labeled']} labeled",
        f"`{taught.checksum}`",
        "Squares | circles",
        "- Never on Mondays.",
        "audit-train: ",
        "No license was chosen for the weights.",
        f'from_pretrained("hf://{NAME}")',
        "`supervised`, 2 steps of 6 clips, seed 0",
    ):
        assert part in card, part


def test_what_distill_delivers_has_the_card_of_its_run(trained, tmp_path):
    """As `distill` leaves it: the delivered student in `best/`, its run in the study, the audit beside them."""
    out = tmp_path / "distilled"
    shutil.copytree(trained, out / "study" / "runs" / "clean" / "mnf" / "seed-0")
    shutil.copytree(trained / "best", out / "best")
    shutil.copytree(trained / "evaluation-test", out / "evaluation-test")
    (out / "audit").mkdir()
    record = {"metrics": {"scored": 9, "clips": 11, "mismatched_share_at_most": 0.25}, "settings": {"by": "x"}}
    (out / "audit" / "audit.json").write_text(json.dumps(record))
    assert main(["publish", str(out), NAME, "--out", str(tmp_path / "look")]) == 0
    card = (tmp_path / "look" / "README.md").read_text()
    for part in (
        "`supervised`, 2 steps of 6 clips, seed 0",
        "| top-1 accuracy | ",
        "9 of 11 clips were scored by x.",
        "At most 25% of the clips have unrelated audio",
    ):
        assert part in card, part


def test_metrics_of_other_weights_are_not_in_the_card(hub, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    file = run / "evaluation-test" / "provenance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"weights_sha256": "0" * 64}))
    publish(run, NAME)
    card = hub.repositories[NAME].commits[hub.repositories[NAME].branches["main"]]["README.md"].decode()
    assert "top-1 accuracy" not in card
    assert "mean average precision" in card


def test_a_teacher_is_converted_into_one_file_that_names_its_classes(tmp_path, capsys):
    file = tmp_path / "yamnet.safetensors"
    assert main(["teacher", "convert", "yamnet", "--weights", "random", "--out", str(file), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert report["license"] == "Apache-2.0"
    with safe_open(file, "pt") as opened:
        assert len(json.loads(opened.metadata()["classes"])) == 521
    again, before = load_teacher("yamnet", weights=file), load_teacher("yamnet", weights="random")
    ours, theirs = again.network.state_dict(), before.network.state_dict()
    assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)
    assert again.classes == before.classes
    assert again.provenance["weights_sha256"] == report["sha256"]
    for wrong, out in (("resnet", "a.safetensors"), ("yamnet", "a.pt")):
        with pytest.raises(TeacherError, match="expected"):
            convert_teacher(wrong, tmp_path / out, weights="random")


def test_class_names_in_the_header_are_used(tmp_path):
    from avdistill.models.pretrained import class_names
    from avdistill.models.weights import save_tensors

    save_tensors({}, tmp_path / "a.safetensors", {"classes": '["x", "y"]'})
    assert class_names(None, 2, tmp_path / "a.safetensors") == ("x", "y")
    with pytest.raises(CheckpointError, match="expected 3 class names, found 2"):
        class_names(None, 3, tmp_path / "a.safetensors")
