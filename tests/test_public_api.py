"""The public names: complete, typed for users, and free of PyTorch until one is used."""

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import avdistill
from avdistill import errors

ROOT = Path(__file__).resolve().parents[1]
USERS_FILE = """
from pathlib import Path

import torch

import avdistill
from avdistill import ClipDataset, PrepareConfig, Progress, TrainConfig, losses

steps: list[int] = []


def show(progress: Progress) -> None:
    total: int | None = progress.total
    print(progress.done, total, progress.note)


def on_step(step: int, values: dict[str, float]) -> None:
    steps.append(step)


clips = avdistill.read_annotations(Path("list.csv"))
dataset: ClipDataset = avdistill.prepare(clips, Path("videos"), Path("dataset"), PrepareConfig(), on_progress=show)
teacher = avdistill.load_teacher("panns")
embedded: int = avdistill.embed(dataset, teacher, "audio", on_progress=show).clips
config = TrainConfig(
    dataset=dataset.folder, out=Path("run"), student=avdistill.ModelConfig(view=avdistill.VideoInput(frames=8))
)
try:
    run: Path = avdistill.train(config, on_step=on_step)
    run = avdistill.resume(run)
    result = avdistill.evaluate(run, dataset, on_progress=show)
    if isinstance(result.metrics, avdistill.ClassificationMetrics):
        accuracy: float = result.metrics.top1_accuracy
    found = avdistill.retrieve(run, ClipDataset(Path("dataset")))
    suspicious = avdistill.audit(run, dataset)
except avdistill.AvdistillError as error:
    code: int = error.exit_code
except avdistill.NotFiniteError as error:
    ids: list[str] = error.clips
student = avdistill.Student.from_pretrained(run)
label: str = student.predict("video.mp4").label
clip = avdistill.read_clip(Path("video.mp4"), fps=4.0, short_side=128, sample_rate_hz=16000)
assert clip.frames is not None
embedding = torch.randn(4, 8)
value: torch.Tensor = losses.kd_loss(student=embedding, teacher=embedding, temperature=4.0)
names: list[str] = sorted(avdistill.RECIPES)
reveal_type(avdistill.train)
avdistill.nothing
"""


def test_every_error_is_exported():
    defined = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert defined <= set(avdistill.__all__)


def test_what_a_type_checker_reads_is_what_runs():
    tree = ast.parse(Path(avdistill.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    read = {alias.name: node.module for node in block.body for alias in node.names}
    assert read == {"losses": "avdistill", **avdistill._HOMES}
    assert all(alias.asname == alias.name for node in block.body for alias in node.names)


@pytest.mark.parametrize("name", avdistill.__all__)
def test_a_public_name_is_found(name):
    assert getattr(avdistill, name) is not None
    assert name in dir(avdistill)


def test_names_are_sorted_and_another_is_an_error():
    assert avdistill.__all__ == sorted(avdistill.__all__) == sorted(dir(avdistill))
    with pytest.raises(AttributeError, match="Nothing"):
        _ = avdistill.Nothing


def test_importing_the_package_imports_no_torch():
    program = "import sys, avdistill; avdistill.ConfigError; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_users_file_is_checked_strictly(tmp_path):
    """Two lines are wrong on purpose: they show what mypy knows."""
    file = tmp_path / "user.py"
    file.write_text(USERS_FILE)
    words = ["--strict", "--ignore-missing-imports", "--follow-imports=silent", "--no-error-summary"]
    words += ["--cache-dir", str(ROOT / ".mypy_cache" / "user")]
    environment = {**os.environ, "MYPYPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *words, str(file)],
        capture_output=True, text=True, check=False, env=environment, cwd=tmp_path,
    )  # fmt: skip
    lines = [line.partition(": ")[2] for line in done.stdout.splitlines()]
    assert len(lines) == 2, done.stdout + done.stderr
    assert lines[0].startswith('note: Revealed type is "def (config: avdistill.training.config.TrainConfig, ')
    assert lines[1] == 'error: Module has no attribute "nothing"  [attr-defined]'
