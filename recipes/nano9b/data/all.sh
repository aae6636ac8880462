#!/usr/bin/env bash
# All shards of the published mixture whose downloads are there (RAW, OUT: see common.sh); says which are not. The same
# command continues where it was stopped.
here=$(dirname "$0")
failed=()
for script in "$here"/*.sh; do
  case $(basename "$script") in all.sh | common.sh | weights.sh) continue ;; esac
  echo "== $(basename "$script")"
  bash "$script" || failed+=("$(basename "$script")")
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "not made: ${failed[*]} (docs/nano9b-data.md)" >&2
  exit 1
fi
