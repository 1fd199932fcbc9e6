"""The version of the package: nobody has to import its face for it."""

__version__ = "0.2.0"
