"""Fixtures of the tests of the pipeline and its results."""

import pytest
from helpers.committed import extract_commit


@pytest.fixture(scope="session")
def committed(tmp_path_factory):
    """Folder with the files of the last commit."""
    folder = tmp_path_factory.mktemp("commit")
    extract_commit(folder)
    return folder
