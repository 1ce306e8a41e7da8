"""Every project in turn: one of them in every run of the tests, the others among the slow ones."""

import pytest

from attempts import Attempts
from conftest import PROJECTS
from projects import SmallTraining

QUICK = "ear_teacher"  # does all that this folder tests in the least time


@pytest.fixture(
    scope="session",
    params=[pytest.param(folder.name, marks=[pytest.mark.slow] * (folder.name != QUICK)) for folder in PROJECTS],
)
def project(request) -> str:
    """Its name, which is that of its folder."""
    return request.param


@pytest.fixture(scope="session")
def small(project, tmp_path_factory, worker_id) -> SmallTraining:
    """The project with data drawn for it. Synthetic."""
    own = tmp_path_factory.getbasetemp()
    return SmallTraining(project, own if worker_id == "master" else own.parent)


@pytest.fixture
def attempts(tmp_path) -> Attempts:
    return Attempts(tmp_path)
