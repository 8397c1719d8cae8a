"""docs/laws.md, made of what the laws say."""

from __future__ import annotations

from collections.abc import Iterator

from zephyr_kit.testing import KITS, Laws
from zephyr_kit.testing.laws import laws_of
from zephyr_kit.testing.offer import OfferLaws

HEAD = """# Laws

What the engine relies on, law by law: why each exists, and what breaks without it. A plugin's tests inherit the laws of its kind:

```python
from zephyr_kit.testing import ObjectiveLaws

class TestHinge(ObjectiveLaws):
    objective = Hinge(beta=0.01)
```

pytest runs them; `zkit plugin check PATH` runs the same without pytest and says in words which hold, with the largest differences;
`zkit plugin check NAME` tries what an installed plugin offers. A law is a method `test_NAME` that takes nothing but `tmp_path`. Laws
about numbers and texts are tried on what [hypothesis](https://hypothesis.readthedocs.io) draws: ordinary cases, and the ends of what can
be. It draws the same each time for the same code, and tells of the smallest case that it found to break the law, or of the first where
smaller ones would take long; `cases` of a class says how many it tries.
Laws of what costs money or minutes, such as completers, judges and evaluations, are tried on a few fixed cases.

## Breaking a law in the open

Some objectives cannot keep a law: one that compares the examples of a batch with each other, say. The engine's guarantees do not hold
for it then, because a batch holds whichever examples fit: its result depends on the size of batches, on packing and on the number of
devices. Such an objective says so, by the law's name and with the reason:

```python
breaks: ClassVar[Mapping[str, str]] = {"adds_up_over_examples": "the negatives of an example are the other examples of its batch"}
```

The law is then expected to fail. One that is kept after all, or that does not exist, is an error. `zkit plugins`, the report of a run,
the model's card and `zkit certify` show what is broken, and why.

An objective that needs whole logits is another matter: there are none. It sees the log-probability of each target token, since the
head never holds a (tokens x vocabulary) matrix; `Scores` says so when it is asked for more.
"""


def page() -> str:
    """The whole page."""
    kits: dict[type[Laws], list[str]] = {}
    for hook, kit in KITS.items():
        kits.setdefault(kit, []).append(f"`{hook}`")
    shared = [*laws_of(OfferLaws)]
    sections = ["\n".join(_section(kit, hooks)) for kit, hooks in kits.items()]
    common = "\n".join(["## All that stands under `use`", "", *(_law(law.name, law.says, law.without) for law in shared)])
    return "\n\n".join([HEAD.rstrip(), *sections, common]) + "\n"


def _section(kit: type[Laws], hooks: list[str]) -> Iterator[str]:
    yield f"## {kit.title}"
    yield ""
    yield f"`{kit.__name__}`, for {', '.join(hooks)}. It tries `{kit.subject}`."
    yield ""
    known = {law.name for law in laws_of(OfferLaws)}
    yield from (_law(law.name, law.says, law.without) for law in laws_of(kit) if law.name not in known)


def _law(name: str, says: str, without: str) -> str:
    return f"- **`{name}`** {says} *Without it,* {without}"
