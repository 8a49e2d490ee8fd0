"""The demo on a few clips and steps: whole, resumable, and its report holds what it says."""

import json
import logging
from dataclasses import replace

import pytest

from avdistill.analysis import demo
from avdistill.training.recipes import RECIPES


@pytest.fixture
def small(monkeypatch):
    data = replace(demo.DEMO_DATA, teacher_clips=24, labeled_clips=12, unlabeled_clips=12, test_clips=12, seconds=1.0)
    monkeypatch.setattr(demo, "DEMO_DATA", data)
    recipes = {name: replace(RECIPES[name], steps=3) for name in RECIPES if name.startswith("demo_")}
    monkeypatch.setattr(demo, "RECIPES", recipes)


def test_demo_is_whole_and_resumable(small, tmp_path, caplog):
    bars = []
    caplog.set_level(logging.INFO, "avdistill")

    class Bar:
        def __init__(self, title):
            bars.append(title)

        def __enter__(self):
            return lambda progress: None

        def __exit__(self, *error):
            return None

    result = demo.run_demo(tmp_path, seeds=(5,), workers=2, bar=Bar)
    assert bars == ["synthesize videos", "prepare dataset", "train teacher", "embed", "train students", "index"]
    assert f"audio teacher: top-1 accuracy {result['teacher']['top1_accuracy']:.3f}" in caplog.text
    assert result["test_clips"] == 12
    runs = [(row["method"], row["seed"]) for row in result["students"]]
    assert runs == [(m, 5) for m in demo.METHODS]
    assert all(0 <= row[key] <= 1 for row in result["students"] for key in ("top1_accuracy", "hit@1", "map"))
    assert [row["method"] for row in result["summary"]] == ["supervised", "kd", "mnf_csc", "robust_csc"]
    assert list(result["differences"]) == ["kd", "mnf_csc", "robust_csc"]
    assert all(ahead["low"] <= ahead["mean"] <= ahead["high"] for ahead in result["differences"].values())
    page = (tmp_path / "report.html").read_text()
    for row in result["summary"]:
        assert f"{row['top1_accuracy']:.3f}" in page
    assert page.count("data:image/png;base64") == 3
    assert page.count("<video controls") >= 8
    assert "avdistill audit run dataset" in page
    assert (tmp_path / "study" / "report.html").is_file()
    assert "| mnf_csc |" in result["table"]
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(result))

    # Interrupted after one student: the others stay as they are, that one is taken up from its last save.
    (tmp_path / "study" / "runs" / "clean" / "kd_temperature=2" / "seed-5" / "metrics.json").unlink()
    again = demo.run_demo(tmp_path, seeds=(5,), workers=2, bar=Bar)
    assert again["students"] == result["students"]

    # What the line "browse:" starts serves the clips, their audit, a search, and the runs.
    pytest.importorskip("starlette", reason="starlette is not installed: pip install avdistill[serve]")
    from avdistill.server.config import ServeConfig
    from avdistill.server.site import open_site

    config = ServeConfig(dataset=tmp_path / "dataset", runs=(tmp_path / "study",), index=str(tmp_path / "index"))
    site = open_site(config)
    assert [name for _, name in site.pages] == ["Library", "Search", "Audit", "Predict", "Runs"]
    assert site.catalog.scores.path.parts[-5:-1] == ("clean", "robust_csc", "seed-5", "audit-train")
    assert len(site.students.names) == len(demo.METHODS)
    assert site.searcher.spaces == ["audio", "robust_csc"]
    site.close()
