# How .venv is made, and code generated from .proto files; for the Makefile of this project and of those made from it.
# .venv holds stamps: .venv/running when all packages that plugin.py needs are installed, .venv/developing when those of
# requirements-dev.txt are, .venv/interrupted while packages are being installed. One without stamps is somebody's own.

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
	@.venv/bin/pip install -q $(constraints) -r requirements.txt
	@mv .venv/interrupted $@
else
.venv/running: requirements.txt
	@$(call install,-r requirements.txt)
	@touch $@
endif

.venv/developing: .venv/running requirements-dev.txt
	@$(call install,-r requirements-dev.txt)
	@touch $@

# If this is interrupted, the next `make` starts afresh. Otherwise pip could take a half-installed package for a whole
# one. If pip itself gives up, .venv stays. A venv that uv made has no pip.
define install
echo "Installing $(1): the first time about half a minute ..."; \
{ mv .venv/running .venv/interrupted 2>/dev/null || touch .venv/interrupted; } && $(get_pip); \
if .venv/bin/python -m pip install -q $(constraints) $(1); then mv .venv/interrupted .venv/running; \
else rm .venv/interrupted; exit 1; fi
endef
get_pip := { .venv/bin/python -c 'import pip' 2>/dev/null || \
.venv/bin/python -m ensurepip --default-pip >/dev/null 2>&1 || uv pip install -q -p .venv/bin/python pip; }

# In buf's layout, proto/notes/v1/notes.proto is notes/v1/notes.proto to the files that import it. In go-plugin's own,
# proto/notes.proto is just that.
root := $(if $(wildcard proto/*.proto),,$(addprefix -I,$(wildcard proto)))
generate := -m grpc_tools.protoc $(root) -I. --python_out=. --pyi_out=. --grpc_python_out=.

# All but goplugin's and those of tests. The code fits the protobuf that is installed, and newer ones.
protos: .venv/developing
	find . \( -name '.?*' -o -path ./goplugin -o -path ./tests -o -path ./bench \) -prune -o -name '*.proto' -print \
	| xargs .venv/bin/python $(generate)

.PHONY: protos anew
