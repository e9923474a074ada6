"""Training in float32 wherever these tests run: what one network does is compared with what another does, in digits."""

import pytest

from nlzoo.training import devices


@pytest.fixture(scope="session", autouse=True)
def float32_on_every_processor():
    """Tests of bf16 ask for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "cpu_has_bf16", lambda: False)
        yield
