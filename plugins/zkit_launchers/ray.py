"""A Ray cluster: Ray Train's TorchTrainer starts a process for each device, and starts all anew when one fails."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt

from zephyr_kit import ZkitError
from zephyr_kit.protocols import Job


@dataclass(frozen=True)
class Ray:
    """Ray Train's TorchTrainer. The run's folder, and the cache, are on a disk that all machines share."""

    address: str | None = None
    """Of the cluster, as `ray.init` takes it; the one that `ray start` has started here, or a new one, unless given."""
    cpus_per_device: Annotated[int, Gt(0)] = 1
    max_failures: Annotated[int, Ge(-1)] = 3
    """How often all start anew after a failure; -1 for no limit."""

    def problems(self, job: Job) -> Sequence[str]:
        """See `protocols.Launcher`."""
        if importlib.util.find_spec("ray") is None:
            return ["Ray is not installed: pip install 'zephyr-kit[ray]'"]
        return ["--rendezvous: under Ray the cluster knows its machines"] if job.rendezvous is not None else []

    def launch(self, job: Job, say: Callable[[str], None]) -> int:
        """See `protocols.Launcher`."""
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        ray.init(address=self.address, ignore_reinit_error=True, log_to_driver=True, include_dashboard=False)
        needs = {"CPU": float(self.cpus_per_device), **({"GPU": 1.0} if job.device == "cuda" else {})}
        trainer = TorchTrainer(
            take_part,
            train_loop_config={"arguments": list(job.arguments), "folder": str(Path.cwd())},
            scaling_config=ScalingConfig(
                num_workers=job.nodes * job.devices,
                use_gpu=job.device == "cuda",
                resources_per_worker=needs,
            ),
            run_config=RunConfig(
                name=job.name,
                storage_path=str((job.folder / "ray").absolute()),
                failure_config=FailureConfig(max_failures=self.max_failures),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            raise ZkitError(f"Ray could not finish {job.name}: {_first(error)}") from error
        say(f"Ray has finished {job.name}")
        return 0


def take_part(config: Mapping[str, Any]) -> None:
    """Be one of the ranks, in a process of Ray's."""
    from zephyr_kit.cli import build

    os.chdir(config["folder"])
    build().main(config["arguments"], prog_name="zkit", standalone_mode=False)


def _first(error: BaseException) -> BaseException:
    """What lies below the errors that it was wrapped in."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
