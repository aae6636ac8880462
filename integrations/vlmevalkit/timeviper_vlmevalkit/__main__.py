"""`python -m timeviper_vlmevalkit --run RUN --command .../timeviper --data MVBench_8frame [VLMEvalKit's options]`."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from timeviper_vlmevalkit.model import LONGEST, TimeViper


def main() -> None:
    parser = argparse.ArgumentParser(prog="timeviper_vlmevalkit", epilog="All else is VLMEvalKit's (its run.py).")
    parser.add_argument("--run", required=True, help="a run folder of TimeViper, or an export")
    parser.add_argument("--command", default="timeviper", help="the program, in its own environment")
    parser.add_argument("--frames", default="dataset", help="dataset, or a protocol of `timeviper bench run`")
    parser.add_argument("--overrides", default="", help="settings of the run, separated by spaces")
    parser.add_argument("--max-new-tokens", type=int, default=LONGEST, help="tokens of an answer")
    parser.add_argument("--bare", action="store_true", help="the question alone, without options and instructions")
    parser.add_argument("--on-error", default="stop", choices=("stop", "skip"), help="at a video that cannot be read")
    parser.add_argument("--name", help="of the model in VLMEvalKit's folders; TimeViper-RUN's name if not said")
    own, rest = parser.parse_known_args()
    from vlmeval.config import supported_VLM
    from vlmeval.run import load_env
    from vlmeval.run import main as run

    given = vars(own) | {"run": str(Path(own.run).resolve())}
    name = given.pop("name") or f"TimeViper-{Path(given['run']).name}"
    supported_VLM[name] = partial(TimeViper, **given)
    sys.argv = ["run.py", *rest, "--model", name]
    load_env()
    run()


if __name__ == "__main__":
    main()
