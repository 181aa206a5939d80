"""The provider on tf's own runner."""

from items import Items
from tf.runner import run_provider

run_provider(Items())
