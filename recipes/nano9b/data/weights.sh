#!/usr/bin/env bash
# The weights that the nano9b recipes begin with, from the Hugging Face Hub: 18 GB and 3.5 GB.
set -euo pipefail
into=${WEIGHTS:-weights}
hf download nvidia/NVIDIA-Nemotron-Nano-9B-v2 --local-dir "$into/nemotron-nano-9b-v2" --include "*.safetensors" "*.json" "*.jinja"
hf download google/siglip-so400m-patch14-384 --local-dir "$into/siglip-so400m-patch14-384" --include "*.safetensors" "*.json"
