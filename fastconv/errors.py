"""The one exception class of fastconv's own; everything else is a ValueError or a TypeError."""


class DeviceError(RuntimeError):
    """Arrays on different devices, or a device that is not there (and what to install for it)."""
