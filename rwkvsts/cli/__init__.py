"""The command line, a file a command; see main.py for what all of them promise."""

from .main import main

__all__ = ["main"]
