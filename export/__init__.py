"""A trained generator as a folder that needs nothing of this project: ``python -m export``."""
