import pytest
from tiny_world import tiny_config

from classify.settings import ClassifyConfig


@pytest.fixture(scope="module")
def config(place) -> ClassifyConfig:
    return tiny_config(place)
