"""`python -m flowimg`."""

from flowimg.cli import main

main()
