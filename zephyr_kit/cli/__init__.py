"""The command `zkit`. Nothing here imports torch: commands import what they need when they run.

How it ends is told by `zephyr_kit.exits`.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from zephyr_kit import ZkitError, __version__
from zephyr_kit.cli.allocator import begin_anew, let_segments_grow
from zephyr_kit.cli.board import board
from zephyr_kit.cli.cache import cache
from zephyr_kit.cli.certify import certify
from zephyr_kit.cli.chat import chat
from zephyr_kit.cli.completion import complete_runs, completion
from zephyr_kit.cli.doctor import doctor
from zephyr_kit.cli.evaluate import evaluate
from zephyr_kit.cli.harmless import harmless
from zephyr_kit.cli.launch import launch
from zephyr_kit.cli.plan import plan
from zephyr_kit.cli.plugin import plugin
from zephyr_kit.cli.plugins import plugins
from zephyr_kit.cli.presets import presets, schema
from zephyr_kit.cli.preview import preview
from zephyr_kit.cli.report import report
from zephyr_kit.cli.run import run
from zephyr_kit.cli.streams import without_secrets
from zephyr_kit.cli.sweep import sweep
from zephyr_kit.cli.third_parties import NO_THIRD_PARTY, third_parties_heeded
from zephyr_kit.exits import Exit
from zephyr_kit.garbage import look_seldom
from zephyr_kit.heartbeat import LAUNCHER, own_signs
from zephyr_kit.launched import is_a_rank, tie_to
from zephyr_kit.plugins import Plugins
from zephyr_kit.redaction import redacted
from zephyr_kit.stopping import Stopped


def build() -> click.Group:
    """The command group, with our subcommands and those of plugins."""
    found = Plugins()
    group = click.Group(
        "zkit",
        params=[click.Option([NO_THIRD_PARTY], is_flag=True, expose_value=False, help="Load no plugin but those of zephyr-kit itself.")],
        help="Align language models by the Zephyr recipe. Start with `zkit run quickstart`.",
        commands=[
            *(run, sweep, launch, plan, preview, certify, evaluate, report, board, chat),
            *(presets, plugins, plugin, cache, schema, doctor, completion),
        ],
        context_settings={"help_option_names": ["-h", "--help"], "obj": found},
    )
    click.version_option(__version__, "-V", "--version", prog_name="zkit")(group)
    found.add_commands(group)
    for command in group.commands.values():
        complete_runs(command)
    return group


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `zkit`; what the user can mend is told in a few lines, without a traceback."""
    # Before torch starts its threads: on a machine that others use too, threads that spin for long while they
    # wait for each other make small models several times slower; threads that never spin, on a quiet one.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    if own_signs() is not None:
        tie_to(int(os.environ[LAUNCHER]), signal.SIGKILL)()
    if arguments is None and "run" in sys.argv[1:3]:
        begin_anew()
        let_segments_grow()
        look_seldom()
    with third_parties_heeded(sys.argv[1:] if arguments is None else arguments), without_secrets():
        code = _exit_code(arguments)
        if is_a_rank():
            _leave(code)
        sys.exit(code)


def _leave(code: int) -> NoReturn:
    """End at once: the threads of a process group may abort an interpreter that shuts down in order."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _exit_code(arguments: Sequence[str] | None) -> int:
    try:
        # Not click's standalone mode, which answers Ctrl-C with 1, as if something had failed.
        code = build().main(arguments, prog_name="zkit", standalone_mode=False)
    except ZkitError as error:
        if not _noted(str(error)):
            click.echo(harmless(f"error: {error}"), err=True)
        return error.exit
    except Stopped as stopped:
        if not _noted(str(stopped)):
            click.echo(str(stopped), err=True)
        return stopped.exit
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return Exit.INTERRUPTED
    except Exception as error:
        if not _noted(f"{type(error).__name__}: {error}", traceback.format_exc()):
            raise
        return Exit.CRASHED
    return code if isinstance(code, int) else 0


def _noted(cause: str, where: str = "") -> bool:
    """Leave word of why this rank ends, if it is one of several: who has started them tells what came first."""
    signs = own_signs()
    if signs is None:
        return False
    try:
        signs.note_failure(redacted(cause), redacted(where))
    except OSError:  # the disk may be why it ends
        click.echo(harmless(f"{where}error: {cause}"), err=True)
    return True
