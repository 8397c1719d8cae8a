"""The source that reads Hugging Face data sets; never runs code that comes with one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zephyr_kit import ZkitError
from zkit_sources.contained import CARD, check_card, check_contained
from zkit_sources.files import Jsonl
from zkit_sources.formats import FormatName
from zkit_sources.hub_cache import Cached, ask_hub, datasets_cache, find_cached, hub_folder
from zkit_sources.miniature import check_known, write_rows
from zkit_sources.paths import digest, nearest
from zkit_sources.schema import Answer, Record, Records, Schema, near

REPOSITORY = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True)
class Hub:
    """A data set of the Hugging Face hub, from the local cache where it is there, or a local folder of one."""

    path: str
    """Name of the repository, such as HuggingFaceH4/ultrachat_200k, or a folder."""
    split: str = "train"
    """The split to read; `train[:10%]` and `train+test` are understood too."""
    config: str | None = None
    """The configuration, where the data set has several."""
    revision: str | None = None
    """A commit, tag or branch; without it, what the cache holds, else the newest."""
    format: FormatName = "auto"
    """How a row is understood; `auto` tells it from the columns of the first rows."""
    columns: dict[str, str] = field(default_factory=dict)
    """Columns that have another name in the data set: standard name to the data set's, as in { prompt = "question" }."""

    def __post_init__(self) -> None:
        if self.path in ("json", "jsonl", "csv", "parquet"):
            raise ValueError(f'`path` = "{self.path}" is a kind of file; to read one, write use = "{self.path}"')
        for name, value in (("path", self.path), ("split", self.split)):
            if not value.strip():
                raise ValueError(f"`{name}` is empty")
        self._schema.validate()

    def rows(self) -> Iterator[Answer]:
        """Every row of the split, in its order."""
        return self._schema.examples(self.records(), where=self.path)

    def fingerprint(self) -> str:
        """What was asked for, and the commit that answers it; of a local folder, a digest of its files."""
        named = {"path": self.path, "config": self.config, "split": self.split}
        parts = {"use": "hub", "format": self.format, "columns": self.columns, **named, "content": self._content()}
        return json.dumps(parts, sort_keys=True)

    def problems(self) -> Sequence[str]:
        """A folder without files, a split that is not there, a data set that is out of reach."""
        if self._folder.is_dir():
            return [] if self._local_files() else [f"{self._folder.absolute()}: the folder holds no files"]
        if self._folder.exists():
            return [f'{self._folder.absolute()}: it is a file; read it with use = "jsonl", "json", "csv" or "parquet"']
        if not REPOSITORY.fullmatch(self.path):
            return [f"{self._folder.absolute()}: no such folder{nearest(self._folder)}"]
        cached = self._cached()
        problem = self._split_problem(cached) if cached else self._hub_problem()
        return [problem] if problem else []

    def miniature(self, folder: Path) -> Jsonl:
        """Generated rows in the same format; with `auto` the data set must be within reach to tell it."""
        known = check_known(self.told(self._schema), self.path)
        return Jsonl(str(write_rows(folder, known, seed=f"{self.path} {self.split}")), format=known)

    def records(self) -> Records:
        """Every row of the split as it stands there."""
        for number, values in enumerate(self._load(), 1):
            yield Record(f"{self.path}: row {number}", values)

    def check(self, schema: Schema) -> list[str]:
        """What stands in the way of reading it; its rows are not looked at, which would take too long."""
        return list(self.problems())

    def told(self, schema: Schema) -> str:
        """The format of the first rows; empty where it would have to be fetched to tell."""
        if schema.format == "auto" and not self._folder.is_dir() and not self._cached():
            return ""
        return schema.recognised(self.records(), where=self.path)[0]

    def _see_to(self, folder: Path | None) -> None:
        """Refuse what would lead elsewhere; of what is yet to be fetched, its card tells."""
        if folder is not None:
            check_contained(folder, files_in(folder))
        elif not self._cached():
            card = card_of(self.path, self.revision)
            if card is not None:
                check_card(card)

    @property
    def _schema(self) -> Schema:
        return Schema(self.format, self.columns)

    @property
    def _folder(self) -> Path:
        return Path(self.path).expanduser()

    def _local_files(self) -> list[Path]:
        return [file for file in files_in(self._folder) if file.is_file()]

    def _cached(self) -> Cached | None:
        return find_cached(self.path, config=self.config, revision=self.revision)

    def _content(self) -> str | None:
        if self._folder.is_dir():
            return digest(self._local_files())
        cached = self._cached()
        return cached.commit if cached else ask_hub(self.path, self.revision).commit or self.revision

    def _split_problem(self, cached: Cached) -> str:
        known = cached.splits()
        for part in self.split.split("+"):
            name = part.partition("[")[0].strip()
            if known and name not in (*known, "all"):
                return f"{self.path}: no split `{name}`{near(name, known)} (it has {', '.join(known)})"
        return ""

    def _hub_problem(self) -> str:
        problem = ask_hub(self.path, self.revision).problem
        places = f"{datasets_cache()}, {hub_folder(self.path).parent}"
        return f"{self.path}: neither in the local cache ({places}) nor on the hub: {problem}. {self._advice()}" if problem else ""

    def _advice(self) -> str:
        return (
            f"On a machine with network run `hf download --repo-type dataset {self.path}` and copy its HF_HOME here, "
            f'set HF_HOME to where it is, or read a local file with use = "jsonl"'
        )

    def _load(self) -> Any:
        """The data set, from its folder, from the cache, or from the hub."""
        here = self._folder.is_dir()
        cached = None if here else self._cached()
        self._see_to(self._folder if here else cached.folder if cached and not cached.prepared else None)
        try:
            if cached and cached.prepared:
                return load_prepared(cached, self.path, self.split)
            if here or cached:
                return load_folder(cached.folder if cached else self._folder, self.config, self.split)
            return load_remote(self.path, self.config, split=self.split, revision=self.revision)
        except Exception as error:  # `datasets` raises what its many readers raise
            advice = "" if here or cached else f". {self._advice()}"
            reason = f"{type(error).__name__}: {error}".rstrip(".")
            raise ZkitError(f"{self.path} (split {self.split}): cannot be loaded: {reason}{advice}") from error


def files_in(folder: Path) -> list[Path]:
    """All that is no folder, and links to some, in order; nothing hidden."""
    found = sorted(file for file in folder.rglob("*") if file.is_symlink() or not file.is_dir())
    return [file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def card_of(repo: str, revision: str | None) -> Path | None:
    """The card of a repository; None if it has none, or is out of reach."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, CARD, repo_type="dataset", revision=revision))
    except Exception:  # whichever HTTP client is below has errors of its own
        return None


def load_remote(repo: str, config: str | None, *, split: str, revision: str | None) -> Any:
    """A data set that is not in the cache yet; `datasets` 4 and later run no code that comes with one."""
    import datasets

    return datasets.load_dataset(repo, config, split=split, revision=revision)


def load_folder(folder: Path, config: str | None, split: str) -> Any:
    """A folder of data files, or one that `save_to_disk` wrote."""
    import datasets

    if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return datasets.load_dataset(str(folder), config, split=split)
    saved = datasets.load_from_disk(str(folder))
    if not isinstance(saved, datasets.DatasetDict):
        return saved
    if split not in saved:
        raise ValueError(f"no split `{split}`{near(split, list(saved))} (it has {', '.join(map(str, saved))})")
    return saved[split]


def load_prepared(cached: Cached, repo: str, split: str) -> Any:
    """What `datasets` has prepared before, as it reads it itself when it is offline."""
    from datasets.packaged_modules.cache.cache import Cache

    config, version, commit = cached.folder.parts[-3:]
    root = str(datasets_cache())
    builder = Cache(cache_dir=root, repo_id=repo, dataset_name=repo.rpartition("/")[2], config_name=config, version=version, hash=commit)
    return builder.as_dataset(split=split)
