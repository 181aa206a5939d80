"""plugin.py where there is no fork, as on Windows."""

import os

del os.fork

import goplugin

import functools

import plugin

if "ALLOW_UNVERIFIED_CALLERS" in os.environ:
    setattr(goplugin, "Plugin", functools.partial(goplugin.Plugin, allow_unverified_callers=True))  # noqa: B010
plugin.main()
