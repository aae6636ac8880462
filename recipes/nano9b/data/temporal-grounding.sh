#!/usr/bin/env bash
# Stages 2 and 3, data/nano9b/temporal-grounding: when something happens, of Charades-STA, QVHighlights and ActivityNet Captions.
#   RAW/charades/charades_sta_train.txt, videos/...
#   RAW/qvhighlights/highlight_train_release.jsonl, videos/...
#   RAW/activitynet/train.json, videos/...
. "$(dirname "$0")/common.sh"
found=("$RAW"/charades/charades_sta_train.tx[t] "$RAW"/qvhighlights/highlight_train_release.json[l]
  "$RAW"/activitynet/train.jso[n])
need "${found[@]}"
for list in "${found[@]}"; do
  set=$(basename "$(dirname "$list")")
  make_shards "$list" temporal-grounding mixed "when_$set" --media-root "$RAW/$set/videos"
done
