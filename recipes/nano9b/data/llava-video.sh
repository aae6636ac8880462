#!/usr/bin/env bash
# Stages 2 and 3, data/nano9b/llava-video: LLaVA-Video-178K, its archives unpacked in the folder of each subset.
#   RAW/llava-video/SUBSET/*_processed.json      captions, open questions, multiple choice
#   RAW/llava-video/SUBSET/academic_source/...   videos, as the entries name them
. "$(dirname "$0")/common.sh"
lists=("$RAW"/llava-video/*/*_processed.json)
need "${lists[@]}"
for list in "${lists[@]}"; do
  make_shards "$list" llava-video mixed "$(slug "$(basename "$list" .json)")" --media-root "$(dirname "$list")"
done
