#!/usr/bin/env bash
# Stage 2, data/nano9b/et-instruct: ET-Instruct-164K, with times as text.
#   RAW/et-instruct/et_instruct_164k_txt.json    not _vid.json, whose times are tokens of another model
#   RAW/et-instruct/videos/...                   its archives, unpacked there
. "$(dirname "$0")/common.sh"
lists=("$RAW"/et-instruct/et_instruct_164k_txt.json)
[ -e "${lists[0]}" ] || need
make_shards "${lists[0]}" et-instruct mixed et_instruct --media-root "$RAW/et-instruct/videos"
