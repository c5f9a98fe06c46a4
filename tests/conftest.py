"""Fixtures shared by all rooms' tests."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SEN2FINE_DATA", REPOSITORY.parent / "shared" / "data"))


LOG_LINE = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ [A-Z]+ pipeline[\w.]*: .*\n", re.MULTILINE)


def without_log(err):
    """What a command prints on stderr besides the log lines of a run outside a terminal."""
    return LOG_LINE.sub("", err)


settings.register_profile("shared machines", deadline=None)  # seconds say nothing there; counts and values do
settings.load_profile("shared machines")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: "long" not in item.keywords)
    absent = {}
    if not DATA.is_dir():
        absent["shared_data"] = f"real imagery is not at {DATA}; set SEN2FINE_DATA"
    if any("cuda" in item.keywords for item in items):
        import torch

        if not torch.cuda.is_available():
            absent["cuda"] = "torch sees no GPU"
    for item in items:
        for mark, reason in absent.items():
            if mark in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True, scope="session")
def state_folder(tmp_path_factory):
    """The key that marks indexes is the tests' own, also in processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread():
    """As in workers; more threads are slower for small tensors and may round differently."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def no_gateway_left():
    """The gateway ends with this process anyway, but its pipes would be said to be open."""
    yield
    from pipeline.archive.read import gateway

    for running in list(gateway._running):
        gateway._stop(running)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real imagery and reference vectors; only for tests marked `shared_data`."""
    return DATA
