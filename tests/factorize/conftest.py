from __future__ import annotations

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Many small products: threads of the BLAS only get in each other's way."""
    with threadpool_limits(1):
        yield
