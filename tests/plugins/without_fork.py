"""plugin.py where there is no fork, as on Windows."""

import os

del os.fork

import plugin

plugin.main()
