"""plugin.py as an ordinary user, so that permissions apply even if root runs the tests."""

import plugin

import os

if os.getuid() == 0:
    os.setuid(65534)
plugin.main()
