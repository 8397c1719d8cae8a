"""What is said of an export that is not the model."""

from zephyr_kit import ZkitError


class ParityError(ZkitError):
    """An exported model that is not the one that was trained."""
