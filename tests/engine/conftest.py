import pytest
from tiny_world import tiny_config

from data.config import Root


@pytest.fixture(scope="module")
def config(place) -> Root:
    return tiny_config(place)
