"""The version of goplugin. It tells an old copy from a newer one."""

__version__ = "0.3.0"
