"""The exceptions of the package: one per thing that can be wrong, each with one clear message.

Every message says what was wrong, where, what was expected, what was found and what to do.
"""

from __future__ import annotations


class CheckpointError(ValueError):
    """A weight or vocabulary file cannot be used: damaged, incomplete, hostile, or no RWKV."""


class DataError(ValueError):
    """A data set or word vector file is not what it claims to be."""


class HubError(OSError):
    """A file could not be had from the model hub: no network, no such repository, no permission."""


class DeviceError(RuntimeError):
    """The device asked for is absent, unfit or has failed."""
