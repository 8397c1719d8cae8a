"""Data sets of the Hugging Face hub: what the local cache holds, and what the hub answers.

Nothing here imports `datasets`, so that a preset is checked within three seconds.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from zephyr_kit.patience import within

PROBE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Cached:
    """A data set in the local cache."""

    folder: Path
    """Where its Arrow files are (`prepared`), or its files as the hub has them."""
    commit: str
    prepared: bool

    def splits(self) -> tuple[str, ...]:
        """The names of its splits; empty when they cannot be told without loading it."""
        if not self.prepared:
            return ()
        return tuple(json.loads((self.folder / "dataset_info.json").read_text(encoding="utf-8")).get("splits") or ())


@dataclass(frozen=True, slots=True)
class Answer:
    """What the hub says of a data set."""

    commit: str | None = None
    problem: str = ""


def datasets_cache() -> Path:
    """Where `datasets` keeps what it has prepared."""
    from huggingface_hub import constants

    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets").expanduser()


def hub_folder(repo: str) -> Path:
    """Where `huggingface_hub` keeps the files of a data set."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"datasets--{repo.replace('/', '--')}"


def find_cached(repo: str, *, config: str | None, revision: str | None) -> Cached | None:
    """The prepared data set, else its downloaded files; of the revision, else of the newest."""
    wanted = known_commit(repo, revision or "main") or revision
    for folders, prepared in ((prepared_folders(repo, config), True), (snapshots(repo), False)):
        exact = [folder for folder in folders if wanted and folder.name.startswith(wanted)]
        chosen = exact or ([] if revision else sorted(folders, key=lambda folder: folder.stat().st_mtime))
        if chosen:
            return Cached(chosen[-1], chosen[-1].name, prepared)
    return None


def known_commit(repo: str, revision: str) -> str | None:
    """The commit that a branch or tag stood for when it was last downloaded."""
    reference = hub_folder(repo) / "refs" / revision
    return reference.read_text(encoding="utf-8").strip() if reference.is_file() else None


def prepared_folders(repo: str, config: str | None) -> list[Path]:
    """Folders `<cache>/<owner>___<name>/<config>/<version>/<commit>` that are complete."""
    owner, _, name = repo.rpartition("/")
    root = datasets_cache() / "___".join(part for part in (owner, snake_case(name)) if part)
    complete = [info.parent for info in root.glob("*/*/*/dataset_info.json") if info.parent.suffix != ".incomplete"]
    configs = {folder.parts[-3] for folder in complete}
    only = configs.pop() if config is None and len(configs) == 1 else config or "default"
    return [folder for folder in complete if folder.parts[-3] == only]


def snake_case(name: str) -> str:
    """How `datasets` writes a name in a folder name (datasets.naming.camelcase_to_snakecase)."""
    name = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    return re.sub(r"([a-z\d])([A-Z])", r"\1_\2", name).lower()


def snapshots(repo: str) -> list[Path]:
    """Folders of downloaded files that hold more than the data set's card."""
    folders = (hub_folder(repo) / "snapshots").glob("*")
    return [folder for folder in folders if any(is_data(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())]


def is_data(path: Path) -> bool:
    """Whether a file of a data set may hold rows."""
    return path.name != "README.md" and not any(part.startswith(".") for part in path.parts)


def ask_hub(repo: str, revision: str | None) -> Answer:
    """The commit that the hub has, or why it does not say; after two seconds it is not reachable."""
    return within(PROBE_SECONDS, partial(request, repo, revision)) or Answer(problem=f"no answer within {PROBE_SECONDS:g} s")


def request(repo: str, revision: str | None) -> Answer:
    """One request to the hub; any failure becomes a problem."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Answer(HfApi().dataset_info(repo, revision=revision, timeout=PROBE_SECONDS).sha)
    except RepositoryNotFoundError:
        return Answer(problem="the hub has no such data set, or it is private: check the name, or run `hf auth login`")
    except RevisionNotFoundError:
        return Answer(problem=f"the data set has no revision {revision!r}")
    except Exception as error:  # whatever the network throws, the answer is that there is none
        lines = str(error).splitlines()
        return Answer(problem=f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ."))
