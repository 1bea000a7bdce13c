"""What a verb does: the one place where settings, data, fields, training and figures meet."""

from flowimg.data.cache import cache_folder
from flowimg.machine.home import settle_home

settle_home(cache_folder())  # before a job imports a package that writes below the home
