#!/usr/bin/env bash
# Stage 1, data/nano9b/pixelprose: captions of PixelProse on the images of CC12M, as img2dataset has downloaded them.
#   RAW/pixelprose/00000.tar ...      jpg, txt (vlm_caption) and json of each image
. "$(dirname "$0")/common.sh"
need "$RAW"/pixelprose/*.tar
make_shards "$RAW/pixelprose" pixelprose pixelprose cc12m --format tars
