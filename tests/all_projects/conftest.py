import pytest

from conftest import PROJECTS
from small_trainings import SmallTraining


@pytest.fixture(scope="session", params=[folder.name for folder in PROJECTS])
def small(request, tmp_path_factory, worker_id) -> SmallTraining:
    """Every project in turn, with data drawn for it. Synthetic."""
    own = tmp_path_factory.getbasetemp()
    return SmallTraining(request.param, own if worker_id == "master" else own.parent)
