"""One export: what is written, and how it is seen to be what was trained."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zephyr_kit import ZkitError
from zephyr_kit.config import plain
from zephyr_kit.devices import give_back_memory
from zephyr_kit.disk import disk_errors_told, let_others_read, put
from zephyr_kit.models import ADAPTER_FILE, NamedModel
from zephyr_kit.observe import Narrator
from zephyr_kit.protocols import MergingBackend, Start, Tokenizer
from zephyr_kit.runs import write_json
from zkit_export import llama_cpp
from zkit_export.card import write_card
from zkit_export.gguf_file import TYPES, Source, check_gguf, gguf_problem, is_ours, write_gguf
from zkit_export.layers import ALLOWED as ALLOWED_OF_LAYERS
from zkit_export.layers import compare_layers
from zkit_export.ollama import modelfile, turns_of
from zkit_export.parity import Parity, allowed_for, compare
from zkit_export.probes import Look, Probes, find_probes, look, look_at
from zkit_export.refusal import ParityError
from zkit_export.served import Served, logits_of

if TYPE_CHECKING:
    from zkit_export.parity import After

COPIED = (".safetensors", ".json", ".jinja", ".model")
REPORT = "parity.json"
MIB = 2**20
FIRST = "f16"
"""What k-quants are made from."""


@dataclass(frozen=True)
class Wish:
    """What the command line asks for."""

    to: Path
    merge: bool = False
    dtype: str | None = None
    gguf: tuple[str, ...] = ()

    def problems(self) -> Iterator[str]:
        """What stands in the way, found before anything is loaded."""
        if self.to.exists() and (not self.to.is_dir() or any(self.to.iterdir())):
            yield f"{self.to}: is there already; name a folder that is not"
        if self.gguf and (problem := gguf_problem()):
            yield problem
        for kind in self.gguf:
            if kind.lower() not in TYPES and (problem := llama_cpp.quantiser_problem(kind)):
                yield problem


@dataclass(frozen=True)
class Export:
    """A model on its way out."""

    model: NamedModel
    wish: Wish
    device: torch.device
    narrator: Narrator

    def run(self) -> list[Parity]:
        """Write the folder, check it, and put it in its place."""
        tokenizer = self.model.backend.tokenizer(self.model.start)
        probes = find_probes(self.model, tokenizer)
        with self.narrator.track("asking the model as it was trained"):
            before = self._before(tokenizer, probes)
        with self._staged() as folder:
            found = [self._weights(folder, before)]
            Served(folder).check(tokenizer, probes)
            found += [self._gguf(folder, kind, before) for kind in self.wish.gguf]
            if self.wish.gguf:
                self._modelfile(folder)
            report = {"prompts": probes.origin, "template": "as trained", "exports": [plain(asdict(one)) for one in found]}
            write_json(folder / REPORT, report)
            write_card(folder, self.model, found, origin=probes.origin, whole=self._whole)
            let_others_read(folder)
        return found

    @property
    def _whole(self) -> bool:
        folder = self.model.start.folder
        return self.wish.merge or bool(self.wish.gguf) or folder is None or not (folder / ADAPTER_FILE).exists()

    def _before(self, tokenizer: Tokenizer, probes: Probes) -> Look:
        policy = self.model.backend.load(self.device, start=self.model.start, train=False)
        return look(policy, tokenizer, probes, self.device)

    @contextmanager
    def _staged(self) -> Iterator[Path]:
        """A folder beside the place, which it takes when all has gone well."""
        to = self.wish.to.absolute()
        staging = to.with_name(f".{to.name}.{os.getpid()}")
        with disk_errors_told(to.parent):
            staging.mkdir(parents=True)
            try:
                yield staging
                if to.exists():
                    to.rmdir()
                put(staging, to)
            finally:
                shutil.rmtree(staging, ignore_errors=True)

    def _weights(self, folder: Path, before: Look) -> Parity:
        if not self._whole:
            return self._adapter(folder, before)
        backend = self.model.backend
        if not isinstance(backend, MergingBackend):
            raise ZkitError(f"the backend {type(backend).__name__} does not write its models whole; without --merge, adapters are exported")
        with self.narrator.track("writing weights, MiB") as advance:
            backend.merge(folder, start=self.model.start, dtype=self.wish.dtype, advance=lambda done: advance(done // MIB))
        written = str(json.loads((folder / "config.json").read_text("utf-8"))["dtype"])
        with self.narrator.track("comparing the weights"), _opened(folder, self.device) as after:
            found = compare(f"weights in {written}", before, after, allowed=allowed_for(written, self._computed))
        layers = compare_layers(folder, before.seen, allowed=max(ALLOWED_OF_LAYERS[written], ALLOWED_OF_LAYERS[self._computed]))
        layers.check()
        found.check()
        if layers.num_layers:
            self.narrator.say(f"{layers.num_layers} layers write what they wrote, within {layers.error:.2g} of it ({layers.worst})")
        return found

    def _adapter(self, folder: Path, before: Look) -> Parity:
        source = self.model.start.folder
        assert source is not None, "an adapter is in a folder"
        for file in source.iterdir():
            if file.suffix in COPIED:
                shutil.copyfile(file, folder / file.name)
        give_back_memory()
        with self.narrator.track("comparing the adapter"):
            policy = self.model.backend.load(self.device, start=Start(folder), train=False)
            policy.module.eval()
            found = compare("adapter", before, lambda tree: look_at(policy, tree, self.device), allowed=allowed_for(self._computed))
        found.check()
        return found

    @property
    def _computed(self) -> str:
        """What the trained model computes in."""
        dtype = str(getattr(self.model.backend, "dtype", "bfloat16"))
        return "float32" if dtype == "float64" else dtype

    def _gguf(self, folder: Path, kind: str, before: Look) -> Parity:
        file = folder / f"{self.model.name}-{kind.upper()}.gguf"
        own = kind.lower() in TYPES
        first = file if own else folder / f".{FIRST}.gguf"
        with self.narrator.track(f"writing {kind.upper()}, MiB") as advance:
            source, wanted = Source(folder, self.model.name), kind.lower() if own else FIRST
            if is_ours(source) or not llama_cpp.has_converter():
                write_gguf(source, first, wanted, lambda done: advance(done // MIB))
            else:
                llama_cpp.convert(folder, first, wanted)
            if not own:
                llama_cpp.quantise(first, file, kind)
                first.unlink()
        if is_ours(source):
            check_gguf(source, file)
        with self.narrator.track(f"comparing {kind.upper()}"), _opened(folder, self.device, gguf=file.name) as after:
            found = compare(f"GGUF {kind.upper()}", before, after, allowed=allowed_for(_rounding(kind), self._computed))
        found.check()
        return found

    def _modelfile(self, folder: Path) -> None:
        served = Served(folder)
        begin = served.special.get("bos_token", "") if served.begins else ""
        turns = turns_of(served.writer(), begin=begin)
        if turns is None:
            self.narrator.say("no Modelfile: Ollama's language cannot say what this chat template writes; the GGUF holds it as it is")
            return
        ends = json.loads((folder / "generation_config.json").read_text("utf-8")).get("eos_token_id")
        encoder = served.encoder()
        numbers = ends if isinstance(ends, list) else [ends]
        stops = [stop for number in numbers if number is not None and (stop := encoder.id_to_token(number))]
        (folder / "Modelfile").write_text(modelfile(f"{self.model.name}-{self.wish.gguf[-1].upper()}.gguf", turns, stops), "utf-8")


@contextmanager
def _opened(folder: Path, device: torch.device, *, gguf: str | None = None) -> Iterator[After]:
    """The exported weights as transformers reads them, without any of our code."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    give_back_memory()
    how: dict[str, Any] = {"dtype": "auto", "use_safetensors": True} if gguf is None else {"gguf_file": gguf, "dtype": torch.float32}
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, device_map={"": device}, trust_remote_code=False, **how).eval()
    except (ValueError, OSError, ImportError) as error:
        what = "the exported weights" if gguf is None else gguf
        raise ParityError(f"transformers cannot read {what}, so that they cannot be compared: {str(error).splitlines()[0]}") from error
    yield logits_of(model)


def _rounding(kind: str) -> str:
    """What a type of GGUF is counted as."""
    named = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
    bits = next((int(letter) for letter in kind if letter.isdigit()), 4)
    return named.get(kind.lower()) or ("8 bits" if bits >= 6 else "4 bits" if bits >= 4 else "fewer bits")


def push(folder: Path, repository: str, *, public: bool) -> str:
    """Hand the folder to the hub, as the account that `hf auth login` or HF_TOKEN names; the address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub = HfApi()
    try:
        made = hub.create_repo(repository, private=not public, exist_ok=True)
        hub.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="An export of zephyr-kit")
    except (HfHubHTTPError, OSError) as error:
        raise ZkitError(f"{repository}: the hub does not take it ({str(error).splitlines()[0]}); the export is in {folder}") from error
    return str(made)


def rows(found: Sequence[Parity]) -> str:
    """The figures as a table of plain text."""
    from zkit_export.parity import HEAD, told

    lines = [HEAD, *told(found)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
