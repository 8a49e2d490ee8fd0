"""The trackers: trackio, Weights & Biases, MLflow and TensorBoard behind four methods.

Where they keep their data, and whether they use the network, is set by their own environment variables: `TRACKIO_DIR`,
`WANDB_MODE` and `WANDB_DIR`, `MLFLOW_TRACKING_URI`.
"""

import csv
import io
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from avdistill.errors import TrackingError
from avdistill.reporting.tables import Row, format_value, markdown_table

TrackerName = Literal["trackio", "wandb", "mlflow", "tensorboard"]


class Tracker(Protocol):
    """A tracked run that is open.

    Attributes:
        run_id: names the run to the tracker; with it a later process continues the same run.
    """

    run_id: str

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add values of a step, by name; `/` separates groups."""

    def table(self, name: str, rows: Sequence[Row], step: int) -> None:
        """Add a table of rows with the same keys."""

    def file(self, name: str, file: Path) -> None:
        """Add a file as an artifact of that name."""

    def close(self, finished: bool) -> None:
        """Send what is left; `finished` is False where more will follow."""


class TrackioTracker:
    """A run of trackio: in its database in `TRACKIO_DIR`, or on a server that its environment names."""

    def __init__(self, project: str, name: str, run_id: str, config: Mapping[str, Any]) -> None:
        import trackio

        self._module, self.run_id = trackio, run_id
        # trackio continues a run by its name, which has to be the only one.
        self._run = trackio.init(
            project, name=run_id, config=dict(config) | {"run": name}, resume="allow", embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def log(self, step: int, values: Mapping[str, float]) -> None:  # noqa: D102
        self._run.log(dict(values), step=step)

    def table(self, name: str, rows: Sequence[Row], step: int) -> None:  # noqa: D102
        data = [[_cell(value) for value in row.values()] for row in rows]
        self._run.log({name: self._module.Table(columns=list(rows[0]), data=data)}, step=step)

    def file(self, name: str, file: Path) -> None:  # noqa: D102
        self._module.log_artifact(file, name=name, type="page")

    def close(self, finished: bool) -> None:  # noqa: D102
        self._module.finish()


class WandbTracker:
    """A run of Weights & Biases: online, or offline with `WANDB_MODE=offline` for `wandb sync`."""

    def __init__(self, project: str, name: str, run_id: str, config: Mapping[str, Any]) -> None:
        import wandb

        self._module, self.run_id = wandb, run_id
        settings = wandb.Settings(console="off", quiet=True, x_disable_stats=True, disable_git=True)
        self._run = wandb.init(
            project=project, name=name, id=run_id, resume="allow", config=dict(config), settings=settings
        )
        # Its own count of steps must only grow; results may come after a resumed training.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:  # noqa: D102
        self._run.log({"step": step, **values})

    def table(self, name: str, rows: Sequence[Row], step: int) -> None:  # noqa: D102
        data = [[_cell(value) for value in row.values()] for row in rows]
        self._run.log({"step": step, name: self._module.Table(columns=list(rows[0]), data=data)})

    def file(self, name: str, file: Path) -> None:  # noqa: D102
        artifact = self._module.Artifact(f"{self.run_id}-{name}", type="page")
        artifact.add_file(str(file))
        self._run.log_artifact(artifact)

    def close(self, finished: bool) -> None:  # noqa: D102
        self._run.finish()


class MlflowTracker:
    """A run of MLflow at `MLFLOW_TRACKING_URI`: a server, a database, or a folder (`file:`)."""

    def __init__(self, project: str, name: str, run_id: str, config: Mapping[str, Any]) -> None:
        if os.environ.get("MLFLOW_TRACKING_URI", "").startswith(("file:", "/", ".")):
            # MLflow asks whoever names a folder to confirm it; naming it is meant.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric, self._client = Metric, MlflowClient()
        found = self._client.get_experiment_by_name(project)
        experiment = self._client.create_experiment(project) if found is None else found.experiment_id
        known = self._client.search_runs([experiment], f"tags.avdistill_run = '{run_id}'")
        if known:
            self._id = known[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            made = self._client.create_run(experiment, run_name=name, tags={"avdistill_run": run_id})
            self._id = made.info.run_id
            params = [Param(key, str(value)[:500]) for key, value in _flat(config).items()]
            for first in range(0, len(params), 100):
                self._client.log_batch(self._id, params=params[first : first + 100])
        self.run_id = run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:  # noqa: D102
        now = int(time.time() * 1000)
        metrics = [self._metric(_plain(key), value, now, step) for key, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def table(self, name: str, rows: Sequence[Row], step: int) -> None:  # noqa: D102
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        self._client.log_text(self._id, text.getvalue(), f"tables/{_plain(name)}.csv")

    def file(self, name: str, file: Path) -> None:  # noqa: D102
        self._client.log_artifact(self._id, str(file), name)

    def close(self, finished: bool) -> None:  # noqa: D102
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


class TensorBoardTracker:
    """Event files in `tensorboard/PROJECT/RUN_ID` of the working folder."""

    def __init__(self, project: str, name: str, run_id: str, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run_id, self._folder = run_id, Path("tensorboard") / project / run_id
        self._writer: Any = SummaryWriter(str(self._folder))
        rows = [{"option": key, "value": str(value)} for key, value in _flat(config).items()]
        self._writer.add_text("config", markdown_table(rows, {"option": "option", "value": "value"}), 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:  # noqa: D102
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def table(self, name: str, rows: Sequence[Row], step: int) -> None:  # noqa: D102
        self._writer.add_text(name, markdown_table(rows, {key: key for key in rows[0]}), step)

    def file(self, name: str, file: Path) -> None:  # noqa: D102
        (self._folder / name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, self._folder / name / file.name)

    def close(self, finished: bool) -> None:  # noqa: D102
        self._writer.close()


TRACKERS: dict[str, Callable[[str, str, str, Mapping[str, Any]], Tracker]] = {
    "trackio": TrackioTracker,
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
    "tensorboard": TensorBoardTracker,
}
EXTRAS = {"trackio": "track-trackio", "wandb": "track-wandb", "mlflow": "track-mlflow", "tensorboard": "log"}


def open_tracker(to: TrackerName, project: str, name: str, run_id: str, config: Mapping[str, Any]) -> Tracker:
    """Begin a tracked run, or continue the one of that id.

    Args:
        to: a key of `TRACKERS`.
        project: the tracker's project or experiment.
        name: of the run, for people.
        run_id: of the run; no other run has it.
        config: JSON-ready, shown beside the run.

    Raises:
        TrackingError: the tracker is not installed, or refuses.
    """
    try:
        return TRACKERS[to](project, name, run_id, config)
    except ImportError as error:
        raise TrackingError(f"{to} is not installed ({error}): install the extra '{EXTRAS[to]}'") from None


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as `student.view.frames`."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _cell(value: object) -> object:
    return value if isinstance(value, str | int | float) else format_value(value)


def _plain(name: str) -> str:
    """With the characters that MLflow takes in names."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)
