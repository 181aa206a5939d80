# How .venv is made, and code generated from .proto files; for the Makefile of this project and of those made from it.
# .venv holds stamps: .venv/running when all packages that the plugin needs are installed, .venv/developing when those for
# its development are, .venv/interrupted while packages are being installed. One without stamps is somebody's own. A
# project made from this one names the packages in pyproject.toml.
needs := $(or $(wildcard requirements.txt),pyproject.toml)
running := $(if $(filter %.txt,$(needs)),-r requirements.txt,-e .)
developing := $(if $(filter %.txt,$(needs)),-r requirements-dev.txt,-e . --group dev)

PYTHON ?= python3
constraints := $(addprefix -c ,$(wildcard constraints.txt))
say_version := print("%d.%d.%d" % sys.version_info[:3] + " old" * (sys.version_info < (3, 10)))
python := $(shell $(PYTHON) -c 'import sys; $(say_version)' 2>/dev/null)
inside := $(shell .venv/bin/python -c 'import sys; $(say_version)' 2>/dev/null)
advice := Python 3.10 or newer is needed: make PYTHON=/path/to/python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# Why .venv must be made anew; undefined if it can stay. One that works stays unless PYTHON is set to another version.
ifeq ($(wildcard .venv),)
why := there is none
else ifneq ($(wildcard .venv/interrupted),)
why := an installation was interrupted
else ifeq ($(inside),)
why := its Python is gone
else ifeq ($(or $(filter file,$(origin PYTHON)),$(filter $(inside),$(python))),)
why := it has Python $(inside)
endif

# `rm`, not `venv --clear`: if .venv is a symlink, only the link may go.
ifdef why
.venv/running: anew
	$(if $(python),,$(error $(PYTHON) does not run, $(advice)))
	$(if $(findstring old,$(python)),$(error Python $(firstword $(python)) is too old, $(advice)))
	@echo "Making .venv with Python $(python) ($(why)), and installing packages: about half a minute ..."
	@rm -rf .venv && mkdir .venv && touch .venv/interrupted
	@$(PYTHON) -m venv .venv
	@$(get_pip) && .venv/bin/python -m pip install -q $(constraints) $(running)
	@mv .venv/interrupted $@
else
.venv/running: $(needs)
	@$(call install,$(running))
	@touch $@
endif

.venv/developing: .venv/running $(wildcard requirements-dev.txt)
	@$(call install,$(developing))
	@touch $@

# If this is interrupted, the next `make` starts afresh. Otherwise pip could take a half-installed package for a whole
# one. If pip itself gives up, .venv stays. A venv that uv made has no pip; one older than 25.1 does not know --group.
define install
echo "Installing $(1): the first time about half a minute ..."; \
{ mv .venv/running .venv/interrupted 2>/dev/null || touch .venv/interrupted; } && $(get_pip); \
if .venv/bin/python -m pip install -q $(constraints) $(1); then mv .venv/interrupted .venv/running; \
else rm .venv/interrupted; exit 1; fi
endef
get_pip := { .venv/bin/python -c 'import pip' 2>/dev/null || \
.venv/bin/python -m ensurepip --default-pip >/dev/null 2>&1 || uv pip install -q -p .venv/bin/python pip; } && \
.venv/bin/python -m pip install -q 'pip>=25.1'

protos: .venv/developing
	.venv/bin/python -m goplugin protos

.PHONY: protos anew
