"""The backend `unsloth`: the models of `mistral`, trained by the kernels of the library unsloth.

It stands on `zkit_mistral`, as a plugin of somebody else's might: tokenizers, adapters, the head, and all
that reads a trained model are that one's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from zephyr_kit import hookimpl

if TYPE_CHECKING:
    from zephyr_kit.protocols import Backend


@hookimpl
def zkit_backends() -> Mapping[str, type[Backend]]:
    """Offer `unsloth`."""
    from zkit_unsloth.backend import Unsloth

    return {"unsloth": Unsloth}
