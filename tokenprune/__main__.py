# PYTHON_ARGCOMPLETE_OK
"""`python -m tokenprune`, for launchers that want a module."""

from .cli import main

main()
