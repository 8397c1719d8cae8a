"""A real small model as a server has it: it writes replies, and JSON that a schema allows."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny import write_model

Body = dict[str, Any]


@dataclass(frozen=True)
class Said:
    """What the model writes."""

    text: str
    ending: str = "stop"
    num_read: int = 0
    num_written: int = 0


class SmallModel:
    """A causal language model in a folder of Hugging Face format. Held to a JSON schema, it chooses each value by its own logits."""

    def __init__(self, weights: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokens = AutoTokenizer.from_pretrained(weights)
        self._model = AutoModelForCausalLM.from_pretrained(weights).eval()
        self._lock = threading.Lock()
        self._context = self._model.config.max_position_embeddings

    def __call__(self, body: Body) -> Said:
        prompt = "".join(f"{message['content']}\n" for message in body["messages"])
        wanted = body.get("response_format", {})
        with self._lock:
            if wanted.get("type") == "json_schema":
                text, ending = self._fill(wanted["json_schema"]["schema"], prompt), "stop"
            else:
                text, ending = self._write(prompt, body)
        return Said(text, ending, len(self._ids(prompt)), len(self._ids(text)))

    def _write(self, prompt: str, body: Body, room: int | None = None) -> tuple[str, str]:
        import torch

        room = room or min(int(body.get("max_tokens", 64)), self._context // 2)
        ids = torch.tensor([self._ids(prompt)[room - self._context :]])
        temperature = float(body.get("temperature", 1.0))
        drawn = {"temperature": temperature, "top_p": float(body.get("top_p", 1.0)), "top_k": 0} if temperature else {}
        torch.manual_seed(int(body.get("seed", 0)))
        written = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=room,
            do_sample=bool(drawn),
            pad_token_id=self._tokens.eos_token_id,
            **drawn,
        )[0, ids.shape[1] :]
        ended = bool(len(written)) and int(written[-1]) == self._tokens.eos_token_id
        return self._tokens.decode(written, skip_special_tokens=True).strip(), "stop" if ended else "length"

    def _fill(self, schema: Mapping[str, Any], said: str) -> str:
        """JSON that the schema allows, `said` being all that stands before it."""
        choices = _choices(schema)
        if choices:
            return max(choices, key=lambda choice: self._likelihood(said, choice))
        if schema["type"] == "string":
            return json.dumps(self._write(said, {"temperature": 0.0}, room=12)[0])
        if schema["type"] == "array":
            return self._join(said, "[]", [("", schema["items"])] * schema.get("minItems", 1))
        return self._join(said, "{}", [(f"{json.dumps(key)}: ", part) for key, part in schema["properties"].items()])

    def _join(self, said: str, brackets: str, parts: list[tuple[str, Mapping[str, Any]]]) -> str:
        text = brackets[0]
        for number, (key, part) in enumerate(parts):
            text += f"{', ' if number else ''}{key}"
            text += self._fill(part, said + text)
        return text + brackets[1]

    def _likelihood(self, said: str, choice: str) -> float:
        """The mean log-probability of a choice's tokens after what was said."""
        import torch

        before, own = self._ids(said)[-self._context // 2 :], self._ids(choice)
        with torch.inference_mode():
            logp = self._model(torch.tensor([before + own])).logits[0, len(before) - 1 : -1].log_softmax(-1)
        return float(logp[torch.arange(len(own)), own].mean())

    def _ids(self, text: str) -> list[int]:
        return self._tokens(text, add_special_tokens=False)["input_ids"]


def small_weights(request: pytest.FixtureRequest, folders: pytest.TempPathFactory) -> Path:
    """A real small model where there is one, else a random one."""
    try:
        shared: Path = request.getfixturevalue("shared")
    except pytest.skip.Exception:
        return write_model(folders.mktemp("weights"))
    return shared / "models" / "stories260k"


def _choices(schema: Mapping[str, Any]) -> list[str]:
    """The values that a schema allows, where they can be listed."""
    if "anyOf" in schema:
        return [choice for part in schema["anyOf"] for choice in _choices(part)]
    if "enum" in schema:
        return [json.dumps(value) for value in schema["enum"]]
    if schema["type"] in ("integer", "number"):
        return [str(value) for value in range(schema["minimum"], schema["maximum"] + 1)]
    return {"boolean": ["true", "false"], "null": ["null"]}.get(schema["type"], [])
