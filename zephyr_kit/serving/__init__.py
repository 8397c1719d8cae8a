"""Models behind an OpenAI-compatible endpoint on this machine's loopback, with a page to chat on."""

from __future__ import annotations

from zephyr_kit.serving.server import ChatServer
from zephyr_kit.serving.speaker import Speaker, Spoken

__all__ = ["ChatServer", "Speaker", "Spoken"]
