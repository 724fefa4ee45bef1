"""One cluster on Ray for all tests that use it: to begin one takes half a minute."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.ray_house import RayHouse, ray_house


@pytest.fixture(scope="session")
def house() -> Iterator[RayHouse]:
    with ray_house() as made:
        yield made
