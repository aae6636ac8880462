#!/usr/bin/env bash
# Stages 2 and 3, data/nano9b/longvid-moviechat: LongVid and MovieChat-1K.
#   RAW/longvid/*.json, videos/...               lists and videos of longvid_subset
#   RAW/moviechat/jsons/*.json, raw_videos/...   MovieChat-1K_train; taken are its questions about the whole video
. "$(dirname "$0")/common.sh"
long=("$RAW"/longvid/*.json) movies=("$RAW"/moviechat/jsons/*.json)
need "${long[@]}" "${movies[@]}"
for list in "${long[@]}"; do
  make_shards "$list" longvid-moviechat long "$(slug "$(basename "$list" .json)")" --media-root "$RAW/longvid/videos"
done
if [ ${#movies[@]} -gt 0 ]; then
  python3 - "$RAW/moviechat" <<'PYTHON'
import json, pathlib, sys

folder = pathlib.Path(sys.argv[1])
with (folder / "global.jsonl").open("w") as out:
    for path in sorted((folder / "jsons").glob("*.json")):
        said = json.loads(path.read_text())
        for asked in said["global"]:
            entry = {"video": pathlib.Path(said["info"]["video_path"]).name, "question": asked["question"]}
            out.write(json.dumps(entry | {"answer": asked["answer"]}) + "\n")
PYTHON
  make_shards "$RAW/moviechat/global.jsonl" longvid-moviechat long moviechat --media-root "$RAW/moviechat/raw_videos"
fi
