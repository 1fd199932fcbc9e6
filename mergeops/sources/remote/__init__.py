"""Directories wherever they are, and the way of their files from an artifact store to this disk."""
