"""Videos and questions out of a shard, as a task for lmms-eval: `python write_items.py SHARD.tar OUT --count 20`.

Writes OUT/videos/*.mp4 and OUT/items.jsonl: a question a video, its kinds in turn.
"""

from __future__ import annotations

import argparse
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path


def items(shard: Path, out: Path, kinds: list[str]) -> Iterator[dict[str, str]]:
    with tarfile.open(shard) as tar:
        names = tar.getnames()
        for name in names:
            stem, _, ending = name.rpartition(".")
            if ending != "json":
                continue
            talks = json.load(tar.extractfile(name))["conversations"]
            asked = {talk["type"]: talk["messages"] for talk in talks}
            kind = next((kind for kind in kinds if kind in asked), None)
            if kind is None:
                continue
            kinds.append(kinds.pop(kinds.index(kind)))  # the others first, next time
            question, answer = (message["content"] for message in asked[kind][:2])
            video = out / "videos" / f"{stem}.mp4"
            video.write_bytes(tar.extractfile(f"{stem}.mp4").read())
            question = question.replace("<video>", "").strip()
            yield {"video": str(video.resolve()), "kind": kind, "question": question, "answer": answer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shard", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--kinds", default="colour,shape,direction,order,count,when")
    args = parser.parse_args()
    (args.out / "videos").mkdir(parents=True, exist_ok=True)
    found = items(args.shard, args.out, args.kinds.split(","))
    lines = [json.dumps(item) for _, item in zip(range(args.count), found)]
    (args.out / "items.jsonl").write_text("\n".join(lines) + "\n")
    print(f"{args.out}: {len(lines)} questions")


if __name__ == "__main__":
    main()
