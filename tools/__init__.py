"""Tools for maintaining the repository. They are not part of the package."""

from tokenprune.plugins import use_builtin_only

use_builtin_only()  # pages are about what this package has, whatever else is installed
