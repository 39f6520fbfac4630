"""Tools for maintaining the repository. They are not part of the package."""
