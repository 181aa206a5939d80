# What Grafana needs besides: its .proto file, a launcher to develop with, and the plugin's folder to distribute.
VERSION ?= 0.1.0

help::
	@echo "make launcher  let Grafana run plugin.py as it is here"
	@echo "make dist      build the plugin for this kind of machine: make dist VERSION=$(VERSION)"

protos: backend.proto

backend.proto:
	$(PYTHON) fetch.py

launcher: .venv/developing
	.venv/bin/python dist.py launcher

dist: .venv/developing
	@.venv/bin/python -c 'import PyInstaller' 2>/dev/null || { $(call install,pyinstaller); }
	.venv/bin/python dist.py $(VERSION)

.PHONY: launcher dist
