"""One export: what is written, and how it is seen to be what was trained."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from zephyr_kit import ZkitError
from zephyr_kit.config import plain
from zephyr_kit.devices import give_back_memory
from zephyr_kit.disk import disk_errors_told, let_others_read, put
from zephyr_kit.models import ADAPTER_FILE, NamedModel
from zephyr_kit.observe import Narrator
from zephyr_kit.protocols import MergingBackend, Start, Tokenizer
from zephyr_kit.records import read_json, write_json
from zephyr_kit.weights import CONFIG, MEND, looks_like_folder
from zkit_export import llama_cpp
from zkit_export.card import write_card
from zkit_export.gguf_file import TYPES, Source, check_gguf, is_ours, write_gguf
from zkit_export.layers import allowed_of_layers, compare_layers
from zkit_export.ollama import modelfile, turns_of
from zkit_export.parity import Parity, allowed_for, compare
from zkit_export.probes import Look, Probes, find_probes, look, look_at
from zkit_export.read_back import check_template, check_tokens
from zkit_export.served import Served, opened
from zkit_export.wish import Wish

COPIED = (".safetensors", ".json", ".jinja", ".model")
REPORT, GENERATION = "parity.json", "generation_config.json"
MIB = 2**20
FIRST = "f16"
"""What k-quants are made from."""


@dataclass(frozen=True)
class Export:
    """A model on its way out."""

    model: NamedModel
    wish: Wish
    device: torch.device
    narrator: Narrator

    @property
    def tied_to(self) -> Path | None:
        """The folder of this machine that the adapter to be written stands on; None if it may go anywhere."""
        folder = self.model.start.folder
        if self._whole or folder is None:
            return None
        base = str(read_json(folder / ADAPTER_FILE, MEND).get("base_model_name_or_path"))
        return Path(base).expanduser() if looks_like_folder(base) else None

    def run(self) -> list[Parity]:
        """Write the folder, check it, and put it in its place."""
        if self.tied_to:
            self.narrator.say(f"an adapter on {self.tied_to}: it loads only where that folder is; --merge writes the model whole")
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
        written = _counted(json.loads((folder / CONFIG).read_text("utf-8"))["dtype"])
        with self.narrator.track("comparing the weights"), opened(folder, self.device) as after:
            found = compare(f"weights in {written}", before, after, allowed=allowed_for(written, self._computed))
        allowed = allowed_of_layers(written, self._computed)
        layers = compare_layers(folder, before.seen, allowed=allowed, eight_bits=self._bits == 8)
        layers.check()
        found.check()
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
        return _counted(getattr(self.model.backend, "dtype", "bfloat16"))

    @property
    def _bits(self) -> int | None:
        """Of each weight of the base in training, where it was rounded to so few."""
        return getattr(getattr(self.model.backend, "quantize", None), "bits", None)

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
        check_template(Served(folder), file)
        if is_ours(source):
            check_gguf(source, file)
            self.narrator.say(check_tokens(Served(folder), file))
        else:
            self.narrator.say(f"{file.name}: its vocabulary is llama.cpp's converter's, and was not compared")
        with self.narrator.track(f"comparing {kind.upper()}"), opened(folder, self.device, gguf=file.name) as after:
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
        ends = json.loads((folder / GENERATION).read_text("utf-8")).get("eos_token_id")
        encoder = served.encoder()
        numbers = ends if isinstance(ends, list) else [ends]
        stops = [stop for number in numbers if number is not None and (stop := encoder.id_to_token(number))]
        (folder / "Modelfile").write_text(modelfile(f"{self.model.name}-{self.wish.gguf[-1].upper()}.gguf", turns, stops), "utf-8")


def _counted(dtype: str) -> str:
    """What a type of weights is counted as."""
    return "float32" if dtype == "float64" else dtype


def _rounding(kind: str) -> str:
    """What a type of GGUF is counted as."""
    named = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
    bits = next((int(letter) for letter in kind if letter.isdigit()), 4)
    return named.get(kind.lower()) or ("8 bits" if bits >= 6 else "4 bits" if bits >= 4 else "fewer bits")

