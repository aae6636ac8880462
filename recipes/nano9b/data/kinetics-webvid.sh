#!/usr/bin/env bash
# Stage 2, data/nano9b/kinetics-webvid: new captions of Kinetics-400 and WebVid by ShareGemini and ShareGPT4Video.
#   RAW/kinetics-webvid/*.json, *.jsonl          the lists, as downloaded
#   RAW/kinetics-webvid/videos/...               videos, as the entries name them
. "$(dirname "$0")/common.sh"
lists=("$RAW"/kinetics-webvid/*.json "$RAW"/kinetics-webvid/*.jsonl)
need "${lists[@]}"
for list in "${lists[@]}"; do
  name=$(basename "$list")
  make_shards "$list" kinetics-webvid mixed "$(slug "${name%.*}")" --media-root "$RAW/kinetics-webvid/videos"
done
