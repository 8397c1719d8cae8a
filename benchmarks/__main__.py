"""`python -m benchmarks NAME`: see benchmarks/README.md."""

from __future__ import annotations

import argparse

from benchmarks import checkpoints, engine, filters, gpu, kernels, memory, packing, scaling, start, tokenising, training

ALL = (checkpoints, engine, filters, gpu, kernels, memory, packing, scaling, start, tokenising, training)
BENCHMARKS = {one.__name__.rpartition(".")[2]: one for one in ALL}


def main() -> None:
    """Run one of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parsers = parser.add_subparsers(dest="name", required=True)
    for name, benchmark in BENCHMARKS.items():
        one = parsers.add_parser(name, help=benchmark.__doc__, description=benchmark.__doc__)
        one.add_argument("--processors", type=int, default=2, help="how many to use (default: %(default)s)")
        benchmark.add_arguments(one)
    given = parser.parse_args()
    BENCHMARKS[given.name].run(given)


if __name__ == "__main__":
    main()
