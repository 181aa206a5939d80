# What Grafana needs besides: its .proto file, a launcher to develop with, and the plugin's folder to distribute.
# The file is in Grafana's SDK for Go, whose licence is Apache-2.0; so it is fetched, not copied into this project.
sdk := github.com/grafana/grafana-plugin-sdk-go@v0.299.0
VERSION ?= 0.1.0

help::
	@echo "make launcher  let Grafana run plugin.py as it is here"
	@echo "make dist      build the plugin for this kind of machine: make dist VERSION=$(VERSION)"

protos: backend.proto

backend.proto:
	@command -v go >/dev/null || { \
	echo "backend.proto is fetched by Go, and there is none: install it (https://go.dev/dl), or put here what is at" \
	"https://$(subst @,/blob/,$(sdk))/proto/backend.proto" >&2; exit 1; }
	install -m 644 "$$(go mod download -json $(sdk) | sed -n 's/.*"Dir": "\(.*\)",$$/\1/p')/proto/$@" $@

launcher: .venv/developing
	.venv/bin/python dist.py launcher

dist: .venv/developing
	@.venv/bin/python -c 'import PyInstaller' 2>/dev/null || { $(call install,pyinstaller); }
	.venv/bin/python dist.py $(VERSION)

.PHONY: launcher dist
