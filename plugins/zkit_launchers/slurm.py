"""A script for Slurm: one process for each machine, which starts those of its devices."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Gt

from zephyr_kit import ZkitError
from zephyr_kit.exits import Exit
from zephyr_kit.protocols import Job

SCRIPT = "slurm.sh"
TEMPLATE = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --signal=USR1@{warning}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --chdir={folder}
#SBATCH --output={log}
{more}
{setup}
# Since Slurm 22.05 a step does not have the processors of its job unless it asks for them.
processors=${{SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --kill-on-bad-exit=1 $processors {command} --devices {devices}{meeting}
code=$?
# The time was up, and the run has saved where it stood: it goes on when it is its turn again.
if [ $code -eq {warned} ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $code
"""


@dataclass(frozen=True)
class Slurm:
    """Slurm's `sbatch`. The run's folder, and the cache, are on a disk that all machines share."""

    partition: str | None = None
    account: str | None = None
    time: str | None = None
    """As Slurm writes it: 24:00:00, or 2-12 for two days and a half."""
    more: tuple[str, ...] = ()
    """Further options of sbatch, as `--mem=0`, or `--cpus-per-task=64`: for all devices of a machine, whose one task starts them."""
    setup: tuple[str, ...] = ()
    """Lines of shell that come first, as `module load cuda`."""
    port: Annotated[int, Gt(0)] = 29_500
    """Where the machines meet, on the first of them."""
    warning: Annotated[int, Gt(0)] = 300
    """Seconds before the end of the time at which the run saves, leaves, and asks for its next turn."""
    submit: bool = True
    """Hand the script in, where there is an `sbatch`."""

    def problems(self, job: Job) -> Sequence[str]:
        """See `protocols.Launcher`."""
        return ["--rendezvous: under Slurm the machines meet on the first of them"] if job.rendezvous is not None else []

    def launch(self, job: Job, say: Callable[[str], None]) -> int:
        """See `protocols.Launcher`."""
        script = job.folder / SCRIPT
        script.write_text(self._script(job), "utf-8")
        sbatch = shutil.which("sbatch") if self.submit else None
        if sbatch is None:
            say(f"to hand it in:  sbatch {shlex.quote(str(script))}")
            return 0
        handed = subprocess.run([sbatch, str(script)], capture_output=True, text=True, check=False)  # noqa: S603  the user's own sbatch
        if handed.returncode:
            raise ZkitError(f"{sbatch} {script}: {handed.stderr.strip()}")
        say(handed.stdout.strip())
        return 0

    def _script(self, job: Job) -> str:
        options = [f"--{name}={shlex.quote(str(value))}" for name, value in self._options(job).items() if value is not None]
        return TEMPLATE.format(
            name=shlex.quote(f"zkit-{job.name}"),
            nodes=job.nodes if job.fewest_nodes == job.nodes else f"{job.fewest_nodes}-{job.nodes}",
            warning=self.warning,
            folder=shlex.quote(str(Path.cwd())),
            log=shlex.quote(f"{job.folder.absolute()}/".replace("%", "%%") + "slurm-%j.log"),
            more="\n".join(f"#SBATCH {option}" for option in (*options, *self.more)),
            setup="\n".join(self.setup),
            command=shlex.join([sys.executable, "-m", "zephyr_kit", *job.arguments]),
            devices=job.devices,
            meeting=f' --nodes "$SLURM_JOB_NUM_NODES" --rendezvous "$head:{self.port}"' if job.nodes > 1 else "",
            warned=int(Exit.WARNED),
        )

    def _options(self, job: Job) -> dict[str, str | int | None]:
        devices = {"gpus-per-node": job.devices} if job.device == "cuda" else {"cpus-per-task": job.devices}
        # As Slurm has it: one of a name, and of a user, at a time.
        turn = {"dependency": "singleton"} if job.in_turn else {}
        return {"partition": self.partition, "account": self.account, "time": self.time, **devices, **turn}
