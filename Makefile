# Every target sets up what it needs first; `make help` lists them.
#
# Which Python runs it:
#   make test                                  .venv, made here with python3 and torch $(TORCH)
#   V2EDIT_PYTHON=/path/to/python make test    that one; its own torch (2.6 or newer) is kept
#   an activated virtual environment           the same, if it has such a torch; otherwise .venv
# What .venv is made from:
#   make PYTHON=python3.12                     another interpreter
#   make TORCH='torch==2.13.0 --index-url URL' another build of torch, such as one for your GPU

PYTHON ?= python3
TORCH ?= torch==2.13.0

HAS_TORCH := import torch, sys; v = tuple(map(int, torch.__version__.split(".")[:2])); sys.exit(v < (2, 6) or v == (2, 9))
ifeq ($(V2EDIT_PYTHON)$(filter help,$(or $(MAKECMDGOALS),help)),)
  ifneq ($(VIRTUAL_ENV),)
    ifneq ($(realpath $(VIRTUAL_ENV)),$(realpath .venv))
      V2EDIT_PYTHON := $(shell '$(VIRTUAL_ENV)/bin/python' -c '$(HAS_TORCH)' 2>/dev/null && echo '$(VIRTUAL_ENV)/bin/python')
    endif
  endif
endif

# A stamp for each thing that is installed: the package alone (`run`), what tests need, what developing needs.
ifeq ($(V2EDIT_PYTHON),)
  PY := .venv/bin/python
  SETUP := .venv/.v2edit
else
  PY := $(V2EDIT_PYTHON)
  SETUP := .setup/$(shell printf %s '$(V2EDIT_PYTHON)' | cksum | cut -d ' ' -f 1)
endif

.DEFAULT_GOAL := help
.PHONY: help demo test test-heavy fuzz check format
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

demo: $(SETUP)-run ## make a little video, edit it, and say where the pictures are
	@out=runs/demo; n=1; while [ -e "$$out" ]; do n=$$((n+1)); out=runs/demo-$$n; done; \
	'$(PY)' -m v2edit sample --seed $(DEMO_SEED) --kind $(DEMO_KIND) -o "$$out" && \
	'$(PY)' -m v2edit edit "$$out/clip.mp4" "$(DEMO_INSTRUCTION)" -o "$$out/edit" && \
	echo && echo "before and after: $$out/edit/contact.png   as a video: $$out/edit/compare.mp4"
DEMO_SEED ?= 2
DEMO_KIND ?= behind
DEMO_INSTRUCTION ?= add a big yellow tower in the middle in the back

# Many tests wait for processes of their own: two at a time take little more than half.
test: $(SETUP)-test ## the tests (minutes at most, no GPU, no network)
	'$(PY)' -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-heavy: $(SETUP)-test ## the tests that take long or want a GPU
	'$(PY)' -m pytest -q -m heavy

fuzz: $(SETUP)-dev ## the readers against made-up files, all in turn (MINUTES=20)
	@for target in $(FUZZ); do echo "$$target"; mkdir -p ".fuzz/$$target"; \
	  '$(PY)' fuzz/reader.py $$target -max_total_time=$$(( $(MINUTES) * 60 / $(words $(FUZZ)) )) -rss_limit_mb=1024 \
	  -timeout=10 -max_len=16384 -verbosity=0 -artifact_prefix=".fuzz/$$target-" ".fuzz/$$target" "fuzz/corpus/$$target" || exit 1; done
MINUTES ?= 20
FUZZ := video sound image folder prompts sidecar style answer splat spz dot_splat ksplat sog sog_meta \
	points transforms camera_path model_index model_config colmap colmap_cameras colmap_points run tasks

check: $(SETUP)-dev ## lint, formatting and types
	'$(PY)' -m ruff check .
	'$(PY)' -m ruff format --check .
	'$(PY)' -m pyright --pythonpath "$$('$(PY)' -c 'import sys; print(sys.executable)')"

format: $(SETUP)-dev ## put formatting and imports in order
	'$(PY)' -m ruff check --fix .
	'$(PY)' -m ruff format .

# torch goes in first and by itself: what is already there is kept, and which build comes is TORCH's choice alone.
$(SETUP)-%: pyproject.toml
ifeq ($(V2EDIT_PYTHON),)
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "v2edit needs Python 3.11 or newer, and $(PYTHON) is '$$('$(PYTHON)' --version 2>&1)'; try: make PYTHON=python3.12" >&2; exit 1; }
	@'$(PY)' -m pip --version >/dev/null 2>&1 || '$(PYTHON)' -m venv --clear .venv
	@'$(PY)' -c '$(HAS_TORCH)' 2>/dev/null || '$(PY)' -m pip install $(TORCH)
else
	@'$(PY)' -c '$(HAS_TORCH)' 2>/dev/null || { echo "$(PY) has no torch 2.6 or newer (2.9 is refused); install one there first" >&2; exit 1; }
endif
	@echo "installing v2edit$(if $(filter-out run,$*), and what its $(if $(filter test,$*),tests need,developers use)) for $(PY)"
	@'$(PY)' -m pip install --quiet -e '.$(if $(filter-out run,$*),[$*])'
	@mkdir -p '$(dir $(SETUP))' && touch '$@'
