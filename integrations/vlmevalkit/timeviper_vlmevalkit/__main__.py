"""`python -m timeviper_vlmevalkit --run RUN --command .../timeviper --data MVBench_8frame [VLMEvalKit's options]`."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from timeviper_vlmevalkit.model import LONGEST, TimeViper


def main() -> None:
    parser = argparse.ArgumentParser(prog="timeviper_vlmevalkit", epilog="All else is VLMEvalKit's (its run.py).")
    parser.add_argument("--run", required=True, help="a run folder of TimeViper, or an export")
    parser.add_argument("--data", required=True, nargs="+", help="video datasets of VLMEvalKit, such as MVBench_8frame")
    parser.add_argument("--command", default="timeviper", help="the program, in its own environment")
    parser.add_argument("--frames", default="dataset", help="dataset, or a protocol of `timeviper bench run`")
    parser.add_argument("--overrides", default="", help="settings of the run, separated by spaces")
    parser.add_argument("--max-new-tokens", type=int, default=LONGEST, help="tokens of an answer")
    parser.add_argument("--bare", action="store_true", help="the question alone, without options and instructions")
    parser.add_argument("--on-error", default="stop", choices=("stop", "skip"), help="at a video that cannot be read")
    parser.add_argument("--name", help="of the model in VLMEvalKit's folders; TimeViper-RUN's name if not said")
    own, rest = parser.parse_known_args()
    import vlmeval.vlm
    from vlmeval.dataset.video_dataset_config import supported_video_datasets as known
    from vlmeval.run import load_env
    from vlmeval.run import main as run

    for name in own.data:
        if name not in known:
            near = ", ".join(difflib.get_close_matches(name, known, 3)) or "its video_dataset_config.py lists them"
            parser.error(f"VLMEvalKit has no video dataset {name}: {near}")
    given = vars(own) | {"run": str(Path(own.run).resolve())}
    data, called = given.pop("data"), given.pop("name")
    called = called or f"TimeViper-{Path(given['run']).name}"
    vlmeval.vlm.TimeViper = TimeViper
    with TemporaryDirectory() as folder:
        # A configuration, since its PyPI release gives a dataset that is named by --data all options of the program.
        config = Path(folder) / "config.json"
        told = {"model": {called: {"class": "TimeViper", **given}}, "data": {name: {} for name in data}}
        config.write_text(json.dumps(told))
        sys.argv = ["run.py", *rest, "--config", str(config)]
        load_env()
        run()


if __name__ == "__main__":
    main()
