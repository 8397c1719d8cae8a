"""What a run is given whose every word, file and connection is looked at: a preset of two stages, and twenty secrets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tiny import write_model

ROOT = Path(__file__).parents[1]
PRESET = """
name = "contained"
seed = 1

[model]
use = "mistral"
weights = "{weights}"
dtype = "float32"
template = "{template}"

[stages.sft]
objective = "sft"
data = [{{ use = "jsonl", path = "{sft}" }}]
held_out = [{{ use = "jsonl", path = "{sft}" }}]
max_length = 128
train = {{ steps = 2, examples_per_step = 2, learning_rate = 1e-3, checkpoint_every = 1 }}

[stages.dpo]
objective = "dpo"
data = [{{ use = "jsonl", path = "{dpo}" }}]
max_length = 128
model.lora = {{ rank = 2 }}
train = {{ steps = 2, examples_per_step = 2, learning_rate = 1e-3, checkpoint_every = 1 }}
"""
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
NAMES = (
    *("HF_TOKEN", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "WANDB_API_KEY", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("DB_PASSWORD", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AZURE_CLIENT_SECRET", "SLACK_BOT_TOKEN", "PGPASSWORD"),
    *("NPM_TOKEN", "MY_SECRET", "SSH_PASSPHRASE", "REGISTRY_AUTH", "GOOGLE_CREDENTIALS", "SIGNING_KEY", "my_api_key"),
)
CANARIES = {name: f"canary/{number:02d}+aZ9=x" for number, name in enumerate(NAMES)}


def write_inputs(folder: Path) -> None:
    """`preset.toml` and what it names; one row of SFT's data is bad."""
    sft = [{"messages": [{"role": "user", "content": f"Why {n}?"}, {"role": "assistant", "content": f"So {n}."}]} for n in range(6)]
    dpo = [{"prompt": f"Why {n}?", "chosen": f"So {n}.", "rejected": f"No {n}."} for n in range(6)]
    sft.append({"messages": [{"role": "user", "content": "Why?"}]})
    for name, rows in (("sft", sft), ("dpo", dpo)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_model(folder / "weights")
    (folder / "own.jinja").write_text(TEMPLATE)
    facts = {"weights": folder / "weights", "template": folder / "own.jinja", "sft": folder / "sft.jsonl", "dpo": folder / "dpo.jsonl"}
    (folder / "preset.toml").write_text(PRESET.format(**facts))


def arguments(folder: Path, *changes: str) -> list[str]:
    """Of `zkit`."""
    sets = [word for change in ("stages.sft.bad_rows=0.5", *changes) for word in ("--set", change)]
    return ["run", str(folder / "preset.toml"), "--output", str(folder / "run"), "--device", "cpu", *sets]


def environment(folder: Path) -> dict[str, str]:
    """Little but the secrets."""
    places = {"ZKIT_CACHE": folder / "cache", "HF_HOME": folder / "hf", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins")])}
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH", "OMP_NUM_THREADS") if name in os.environ}
    return {**kept, **{name: str(place) for name, place in places.items()}, **CANARIES}


def files_left(folder: Path) -> Iterator[Path]:
    """By the run, wherever it may write."""
    return (path for place in ("run", "cache", "hf") for path in (folder / place).rglob("*") if path.is_file())


def can_go_apart() -> bool:
    """Whether the system lets us take the network away."""
    found = shutil.which("unshare")
    return found is not None and subprocess.run([found, "-n", "true"], capture_output=True, check=False).returncode == 0
