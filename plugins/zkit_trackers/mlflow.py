"""MLflow: a database on this machine, or a tracking server."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zephyr_kit.observe import Run
from zkit_trackers.reach import identity, missing, remote, title

LONGEST_VALUE = 500
"""Of a parameter, in characters: MLflow's own limit."""
IDENTITY = "zkit.identity"
"""The tag by which a stage that goes on finds its run."""


@dataclass(frozen=True)
class MLflow:
    """MLflow: a run for each stage."""

    uri: str | None = None
    """Of the tracking server or database; what MLFLOW_TRACKING_URI says, unless given, or else `sqlite:///mlflow.db`."""
    experiment: str = "zephyr-kit"

    def problems(self) -> Sequence[str]:
        """See `protocols.Tracker`."""
        lack = missing("mlflow")
        return lack or (missing("sqlalchemy") if self._uri.startswith("sqlite") else [])

    def destination(self) -> str | None:
        """See `protocols.Tracker`."""
        return self._uri if self._uri.startswith("databricks") else remote(self._uri)

    def open(self, run: Run) -> Session:
        """See `protocols.Tracker`."""
        # Read when mlflow is imported: what it would tell its makers is nobody's business.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        client = MlflowClient(self._uri)
        known = client.get_experiment_by_name(self.experiment)
        experiment = known.experiment_id if known else client.create_experiment(self.experiment)
        found = client.search_runs([experiment], f"tags.`{IDENTITY}` = '{identity(run)}'") if run.first_step else []
        if found:
            client.update_run(found[0].info.run_id, status="RUNNING")
            return Session(client, found[0].info.run_id)
        made = client.create_run(experiment, run_name=title(run), tags={IDENTITY: identity(run), "stage": run.stage, "preset": run.name})
        _write_settings(client, made.info.run_id, run.settings)
        return Session(client, made.info.run_id)

    @property
    def _uri(self) -> str:
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


@dataclass(frozen=True)
class Session:
    """A run of MLflow."""

    client: Any
    run: str
    sent: list[Any] = field(default_factory=list)
    """The newest of what another thread sends: training does not wait for a server."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """See `protocols.Track`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in figures.items()]
        self.sent[:] = [self.client.log_batch(self.run, metrics=metrics, synchronous=False)]

    def close(self, error: BaseException | None) -> None:
        """See `protocols.Track`."""
        for operation in self.sent:
            operation.wait()
        self.client.set_terminated(self.run, "FINISHED" if error is None else "FAILED")


def _write_settings(client: Any, run: str, settings: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    params = [Param(re.sub(r"\[(\d+)\]", r".\1", key), str(value)[:LONGEST_VALUE]) for key, value in settings.items()]
    client.log_batch(run, params=params)
