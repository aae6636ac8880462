# What the scripts of this folder share: where downloads lie (RAW), where shards go (OUT), and the command that makes them.
# The share of media that is kept from training (SHARE), and further options of `timeviper shards write` (OPTIONS), can be
# set, too: OPTIONS="--part 3/16" in a batch array.
set -euo pipefail
shopt -s nullglob
RAW=${RAW:-raw/nano9b}
OUT=${OUT:-data/nano9b}
SHARE=${SHARE:-0.002}

# make SOURCE FOLDER HELD_OUT NAME [OPTION]...: shards NAME-00000.tar, ... in OUT/FOLDER and OUT/val/HELD_OUT
make_shards() {
  local source=$1 folder=$2 held_out=$3 name=$4
  shift 4
  # shellcheck disable=SC2086
  timeviper shards write "$source" "$OUT/$folder" --held-out "$OUT/val/$held_out" --share "$SHARE" --name "$name" \
    --skip-unusable "$@" ${OPTIONS:-}
}

# Names of tars are of letters, digits, - and _.
slug() { printf %s "$1" | tr -c 'A-Za-z0-9_-' _; }

# need FILE...: at least one, or the message says what was looked for
need() { [ $# -gt 0 ] || { echo "nothing to read below $RAW: docs/nano9b-data.md says what to download, and where to" >&2; exit 1; }; }
