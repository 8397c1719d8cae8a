"""Projects to begin from: what `zkit plugin new` writes.

Each folder beside this file holds the texts of one kind, `every` those that all have; `$offer`,
`$Class` and so on stand for the name that was given. `examples/zkit-hinge` is one, written out.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from zephyr_kit import ZkitError

KINDS: Mapping[str, str] = {
    "objective": "something to minimise",
    "source": "a place to read examples from",
    "filter": "a step that examples pass before they are tokenised",
    "backend": "a model that scores a batch",
    "attention": "an attention kernel for packed rows",
    "optimizer": "an optimizer",
    "completer": "a writer of replies",
    "judge": "a judge of replies",
    "suite": "an evaluation",
    "launcher": "a way to start a run on several devices",
    "tracker": "a place that figures of training are shown in",
}
"""What can be begun, and what it is."""
NOUNS = {"source": "data source"}
"""What `zkit plugins` calls them, where that is another word."""
TEXTS = Path(__file__).parent
LONGEST = 60
"""Characters of a name: it becomes that of files."""
PREFIX = "zkit-"


@dataclass(frozen=True)
class Names:
    """What things are called in a project."""

    offer: str
    """In a preset, and as the plugin's name."""
    kind: str

    @property
    def project(self) -> str:
        """The distribution, and its folder."""
        return PREFIX + self.offer.replace("_", "-")

    @property
    def module(self) -> str:
        """What is imported."""
        return f"zkit_{self.offer}"

    @property
    def cls(self) -> str:
        """The dataclass."""
        return "".join(word.capitalize() for word in self.offer.split("_"))

    def fill(self, text: str) -> str:
        """A text with the names in their places."""
        names = {"offer": self.offer, "project": self.project, "module": self.module, "Class": self.cls}
        return Template(text).substitute(names, noun=NOUNS.get(self.kind, self.kind), about=KINDS[self.kind])


def write_project(name: str, kind: str, into: Path, *, taken: Collection[str] = ()) -> Path:
    """Write a project that offers `name`, into a folder of its own; returns that. `taken` are names that others have already."""
    names = _names(name, kind)
    if names.offer in taken:
        raise ZkitError(f"{name!r}: something of that name is installed already, and two would not work beside each other; choose another")
    folder = into / names.project
    if folder.exists():
        raise ZkitError(f"{folder}: is there already; choose another name, or another place with --into")
    try:
        for path, text in texts(names):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, "utf-8")
    except OSError as error:
        raise ZkitError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return folder


def texts(names: Names) -> Iterator[tuple[str, str]]:
    """Path and text of every file of a project."""
    places = {
        "module.py": f"{names.module}.py",
        "test.py": f"tests/test_{names.module}.py",
        "preset.toml": f"{names.offer}.toml",
        "workflow.yml": ".github/workflows/tests.yml",
        "rows.txt": "tests/rows.txt",
        "gitignore": ".gitignore",
    }
    use = (TEXTS / names.kind / "use.md.txt").read_text("utf-8").strip()
    for folder in ("every", names.kind):
        for file in sorted((TEXTS / folder).glob("*.txt")):
            if file.name != "use.md.txt":
                place = file.name.removesuffix(".txt")
                text = file.read_text("utf-8").replace("$use", use) if place == "README.md" else file.read_text("utf-8")
                yield places.get(place, place), names.fill(text)


def _names(name: str, kind: str) -> Names:
    offer = name.removeprefix(PREFIX).replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", offer):
        raise ZkitError(f"{name!r}: a plugin's name is made of small letters, digits and dashes, a letter first, as `soft-margin`")
    if len(offer) > LONGEST:
        raise ZkitError(f"{name!r}: a plugin's name has at most {LONGEST} characters")
    if offer.rpartition("_")[2] == "test":
        raise ZkitError(f"{name!r}: pytest takes a module whose name ends in `_test` for tests; choose another name")
    names = Names(offer, kind)
    module = next(text for path, text in texts(names) if path == f"{names.module}.py")
    if keyword.iskeyword(names.cls) or re.search(rf"import .*\b{names.cls}\b", module):
        raise ZkitError(f"{name!r}: its class would be called {names.cls}, which means something else there already; choose another name")
    return names
