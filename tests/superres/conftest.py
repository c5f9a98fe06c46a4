"""Small weights of every system, written once."""

import pytest

from tests.superres.every_system import write_every


@pytest.fixture(scope="session")
def weights_of_every_system(tmp_path_factory):
    """Files by role and system."""
    return write_every(tmp_path_factory.mktemp("weights"))
