#!/usr/bin/env bash
# Stage 2, data/nano9b/llava-onevision-single-image: LLaVA-OneVision-Data, Parquet with the images in it.
#   RAW/llava-onevision/SUBSET/train-00000-of-00003.parquet ...
. "$(dirname "$0")/common.sh"
subsets=("$RAW"/llava-onevision/*/)
need "${subsets[@]}"
for subset in "${subsets[@]}"; do
  make_shards "${subset%/}" llava-onevision-single-image mixed "$(slug "$(basename "$subset")")" --format arrow
done
