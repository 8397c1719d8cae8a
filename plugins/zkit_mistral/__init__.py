"""The backend `mistral`: transformers models with full weights, LoRA, or LoRA on a quantised base.

Mistral, and models of its shape (Llama, Qwen, Gemma) that take their attention from
transformers' attention interface and have a plain linear head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from zephyr_kit import hookimpl

if TYPE_CHECKING:
    from zephyr_kit.protocols import Backend


@hookimpl
def zkit_backends() -> Mapping[str, type[Backend]]:
    """Offer `mistral`."""
    from zkit_mistral.backend import Mistral

    return {"mistral": Mistral}
