"""`python -m benchmarks filters`, `tokenising` or `memory`."""

from __future__ import annotations

import argparse

from benchmarks import filters, memory, tokenising

BENCHMARKS = {
    "filters": (filters.run, (10_000, 200_000)),
    "tokenising": (tokenising.run, (200_000,)),
    "memory": (memory.run, (37, 160)),
}


def main() -> None:
    """Run one of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--dialogues", "--sizes", dest="sizes", type=int, nargs="+", metavar="N", help="instead of the sizes of the README")
    parser.add_argument("--processors", type=int, default=2, help="how many to use (default: 2)")
    given = parser.parse_args()
    run, sizes = BENCHMARKS[given.name]
    run(tuple(given.sizes or sizes), given.processors)


if __name__ == "__main__":
    main()
