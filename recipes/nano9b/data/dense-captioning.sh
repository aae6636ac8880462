#!/usr/bin/env bash
# Stage 2, data/nano9b/dense-captioning: what happens when, of ActivityNet Captions, COIN and YouCook2.
#   RAW/activitynet/train.json, videos/...
#   RAW/coin/COIN.json, videos/...
#   RAW/youcook2/youcookii_annotations_trainval.json, videos/...
. "$(dirname "$0")/common.sh"
found=("$RAW"/activitynet/train.jso[n] "$RAW"/coin/COIN.jso[n] "$RAW"/youcook2/youcookii_annotations_trainval.jso[n])
need "${found[@]}"
for list in "${found[@]}"; do
  set=$(basename "$(dirname "$list")")
  case $set in
    activitynet) options=(--format dense) ;;
    *) options=(--only subset=training) ;;
  esac
  make_shards "$list" dense-captioning mixed "dense_$set" --media-root "$RAW/$set/videos" "${options[@]}"
done
