"""llmaas: one language model, served to every app on a device as a system service."""

__version__ = "0.1.0"
