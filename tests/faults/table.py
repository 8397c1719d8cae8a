"""The table of docs/reliability.md, from the figures that `make faults` has noted.

    python -m tests.faults.table FIGURES
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- made by `make faults` -->\n", "<!-- end -->\n"
ROWS = {
    "K1": ("killed (SIGKILL) at any moment: the same command goes on to the same bits", "42 of 60"),
    "K2": ("killed inside saves", "16 of 60"),
    "K2, two ranks": ("ranks killed inside saves of full weights that they share out: the others wait for nobody, all go on", "–"),
    "K3": ("every state that a crash before or after any call can leave", "–"),
    "K4": ("killed in tokenising, cache, hand-over, reference scores, held-out data, export, merging, going on", "–"),
    "K5": ("killed again and again in one run", "–"),
    "K6": ("from checkpoints in every epoch, 25 settings and two stages", "3 loaders wrong in epoch 2"),
    "K7": ("metrics after kills equal those without", "0 of 16"),
    "K8": ("a finished run, started again, does nothing", "takes a step more each time"),
    "K9": ("loss of power: bytes that were never synced are gone", "0 syncs"),
    "K10": ("every sample is seen as often as without kills", "–"),
    "K11": ("checkpoints are chosen by step, whatever their times", "–"),
    "C1": ("one bit flipped in any file of run and cache that is read back: found, file named, the checkpoint before taken", "0 of 300"),
    "C2": ("cut, empty, missing, zeroed, swapped, renamed … : each file", "19 of 32 damages and changes in silence"),
    "C3": ("changed inputs are shown side by side and refused", "the same 19; a changed learning rate is ignored"),
    "S1": ("SIGTERM: saved within the step, exit 143", "0 of 5, or 2 of 12 with exit 0"),
    "S2": ("signals in each phase, twice, and `--max-time`", "–"),
    "S4": ("full disks: refused before, or exit 4 and the older checkpoint stands", "0 of 16"),
    "S5": ("EIO, EROFS, EDQUOT, ESTALE, EMFILE: told without a traceback, nothing lost", "–"),
    "S3": ("SIGTERM to one rank, to the launcher, to all: one step, saved", "none saved"),
    "S7": ("a rank frozen: found, stacks kept, all start again", "–"),
    "memory": ("out of memory: smaller batches, the same step", "–"),
    "N1": ("NaN and Inf: no update, rows named, never kept; three in a row: exit 5", "0 of 4 (loss shown as 0.0)"),
    "N2": ("nothing to train, weights that do not move: refused", "in silence (trl #6700)"),
    "N3": ("accumulation is schedule: loss and gradient in float32", "–"),
    "W2": ("one run goes on on other numbers of ranks, one curve", "–"),
    "W3": ("one of two ranks killed, again and again: back within 30 s", "all ended, nothing saved"),
    "N5": ("100 losses each of SFT, DPO and IPO equal those checked in", "–"),
}


def table(figures: Path) -> str:
    """A row for each label, whatever it was noted by."""
    survived: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    remarks: dict[str, list[str]] = defaultdict(list)
    for line in figures.read_text("utf-8").splitlines():
        note = json.loads(line)
        survived[note["label"]][0] += note["survived"]
        survived[note["label"]][1] += note["of"]
        if note["remark"] and note["label"] not in ("C3", "K4", "K6", "N1", "S2"):
            remarks[note["label"]].append(note["remark"])
    lines = ["| | what | zkit | trl 1.16 |", "|---|---|---|---|"]
    for label, (what, theirs) in ROWS.items():
        if label in survived:
            good, of = survived[label]
            told = f" ({'; '.join(dict.fromkeys(remarks[label]))})" if remarks[label] else ""
            lines.append(f"| {label} | {what} | {good:,} of {of:,}{told} | {theirs} |")
        else:
            lines.append(f"| {label} | {what} | not measured | {theirs} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    made = table(Path(sys.argv[1]))
    text = DOCUMENT.read_text("utf-8")
    before, rest = text.split(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}{made}{END}{rest.split(END)[1]}", "utf-8")
    print(made)  # noqa: T201


if __name__ == "__main__":
    main()
