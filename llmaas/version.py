"""The version of llmaas.

Law: imports nothing, so that every module can read the version without importing the package's public face.
"""

__version__ = "0.1.0"
