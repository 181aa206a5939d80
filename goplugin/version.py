"""The version of goplugin, by which a copy can be told from a newer one."""

__version__ = "0.3.0"
