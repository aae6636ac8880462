"""`srun` for the tests: the tasks of one node as processes here, with the variables that SLURM gives them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path


def main() -> int:
    options = [a for a in sys.argv[1:] if a.startswith("--")]
    command = sys.argv[1 + len(options) :]
    alone = "--ntasks=1" in options
    tasks = 1 if alone else int(os.environ["SLURM_NTASKS_PER_NODE"])
    ranks = [subprocess.Popen(command, env=os.environ | task(rank, tasks)) for rank in range(tasks)]
    signal.signal(signal.SIGUSR1, lambda *_: [rank.send_signal(signal.SIGUSR1) for rank in ranks])
    Path("srun.pid").write_text(str(os.getpid()))
    return max(rank.wait() for rank in ranks)


def task(rank: int, tasks: int) -> dict[str, str]:
    names = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": 0, "SLURM_NTASKS": tasks}
    return {name: str(value) for name, value in names.items()}


if __name__ == "__main__":
    sys.exit(main())
