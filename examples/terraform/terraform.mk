# What Terraform needs besides: a launcher to develop with, and archives to distribute.
VERSION ?= 0.1.0

help::
	@echo "make launcher  let Terraform run plugin.py as it is here"
	@echo "make dist      build the archive that a registry or a mirror distributes: make dist VERSION=$(VERSION)"

launcher: .venv/developing
	.venv/bin/python dist.py launcher

dist: .venv/developing
	@.venv/bin/python -c 'import cx_Freeze' 2>/dev/null || { $(call install,cx_Freeze); }
	.venv/bin/python dist.py $(VERSION)

.PHONY: launcher dist
