"""Drivers of clients, built once."""

from tests.support.drivers import drivers

__all__ = ["drivers"]
