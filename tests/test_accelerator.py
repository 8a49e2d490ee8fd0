"""benchmarks/speed/accelerator.py without a GPU: dry runs where only torch, numpy, safetensors and Pillow are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks" / "speed"))

import accelerator_recipe
from avdistill.training.recipes import RECIPES

SPEED = Path(accelerator_recipe.__file__).parent
BLOCKED = ("av", "tyro", "torchvision", "pyarrow", "scipy", "sklearn", "h5py", "matplotlib", "rich", "jinja2")
DRY_RUNS = """
import runpy, sys

sys.modules.update(dict.fromkeys({blocked}))
sys.path.insert(0, {speed!r})
for arguments in {runs}:
    sys.argv = ["accelerator.py", *arguments]
    runpy.run_path({speed!r} + "/accelerator.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Eight clips whose frames have edges that no other clip has, and the file that `pack` makes of them."""
    folder = tmp_path_factory.mktemp("packed")
    clips = accelerator_recipe.random_clips(8, 6, (40, 56), 512)
    for number, frames in enumerate(clips._frames):
        frames[:] = 20 * number
        for t, frame in enumerate(frames):
            frame[10:30, 5 * t : 5 * t + 12] = 255 - 20 * number
    names = np.array(["clip3", "clip0", "clip1"])
    embedding = np.arange(3 * 512, dtype=np.float32).reshape(3, 512)
    np.savez(folder / "embeddings.npz", name=names, embedding=embedding)
    told = accelerator_recipe.pack(clips, folder / "embeddings.npz", folder / "clips.npz", quality=60, megabytes=1)
    assert told["clips"] == 8
    assert told["with_teacher"] == 3
    return clips, folder / "clips.npz"


def test_packed_clips_are_the_dataset(packed):
    clips, path = packed
    found = accelerator_recipe.read_pack(path)
    assert len(found) == 8
    assert found.labels == clips.labels
    for name in ("id", "group", "split", "frame_count"):
        assert found.columns[name].tolist() == clips.columns[name].tolist()
    for i in range(8):
        assert found.frames(i).shape == (6, 40, 56, 3)
        assert np.abs(found.frames(i).astype(float) - clips.frames(i)).mean() < 4
    teacher = found.features("cnn14")
    assert teacher.valid.tolist() == [True, True, False, True, False, False, False, False]
    assert teacher.embedding[[3, 0, 1], 0].tolist() == [0, 512, 1024]


def test_a_pack_that_is_too_large_is_refused(packed, tmp_path):
    clips, path = packed
    with pytest.raises(SystemExit, match=r"expected at most 0\.001 MB"):
        accelerator_recipe.pack(clips, path.with_name("embeddings.npz"), tmp_path / "x.npz", 60, 0.001)


def test_dry_run_on_a_bare_machine(packed, tmp_path):
    out = tmp_path / "accelerator.json"
    common = ["--dry-run", "--out", str(out)]
    runs = [["parity", *common], ["steps", *common, "accelerator_step"], ["recipe", *common, "--clips", str(packed[1])]]
    script = DRY_RUNS.format(blocked=BLOCKED, speed=str(SPEED), runs=runs)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(out.read_text())}
    assert rows["parity_float32"]["ratio"] >= 1
    assert rows["parity_bfloat16"]["ratio"] >= 1
    assert {"ratio", "bar", "ours_seconds", "theirs_seconds", "versions", "processor"} <= rows[
        "accelerator_step"
    ].keys()
    assert rows["ucf51_mnf_csc_seed0"]["steps"] == rows["ucf51_supervised_seed0"]["steps"] == 2
    assert len(rows["ucf51_mnf_csc_seed0"]["correct"]) == 4
    assert rows["ucf51_loading_mnf_csc"]["limit"] == 0.05


def test_the_recipe_is_the_papers():
    """Xia et al. 2023, section 4.1: what the library's recipe says, in epochs."""
    config = RECIPES["ucf51_mnf_csc"]
    assert config.student.model == "r2plus1d_xia2023"
    assert (config.student.view.frames, config.student.view.size, config.student.view.scale) == (
        16,
        (112, 112),
        (0.25, 1),
    )
    assert config.batch_size == 32
    assert (config.optimizer.name, config.optimizer.learning_rate, config.optimizer.weight_decay) == (
        "adam",
        3e-4,
        5e-4,
    )
    assert (config.optimizer.milestones, config.optimizer.gamma) == ((150 / 200,), 0.1)
    assert config.method.filter_lr_scale == 0.2
    assert accelerator_recipe.EPOCHS == 200
