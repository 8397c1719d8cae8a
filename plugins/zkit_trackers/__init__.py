"""Trackers: TensorBoard, Weights & Biases, Trackio, MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from zephyr_kit import hookimpl

if TYPE_CHECKING:
    from zephyr_kit.protocols import Tracker


@hookimpl
def zkit_trackers() -> Mapping[str, type[Tracker]]:
    """Offer places that figures of training are shown in."""
    from zkit_trackers.mlflow import MLflow
    from zkit_trackers.tensorboard import TensorBoard
    from zkit_trackers.trackio import Trackio
    from zkit_trackers.wandb import WandB

    return {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio, "mlflow": MLflow}
