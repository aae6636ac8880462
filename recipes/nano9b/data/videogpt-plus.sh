#!/usr/bin/env bash
# Stage 2, data/nano9b/videogpt-plus: VCG-plus_112K on videos of ActivityNet.
#   RAW/videogpt-plus/vcg-plus_112K.json
#   RAW/videogpt-plus/videos/...                 as the entries name them
. "$(dirname "$0")/common.sh"
list=$RAW/videogpt-plus/vcg-plus_112K.json
[ -e "$list" ] || need
make_shards "$list" videogpt-plus mixed vcg_plus --media-root "$RAW/videogpt-plus/videos"
