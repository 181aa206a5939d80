"""`python -m goplugin check`: see check.py."""

import sys

from goplugin.check import main

sys.exit(main(sys.argv[1:]))
