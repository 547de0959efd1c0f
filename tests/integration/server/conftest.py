"""Local servers as users start them: one without a cloud, one with the cloud of the whole run."""

import pytest
from cloud_support import KEY
from device_server import PATIENT, DeviceServer

ROOM = 16
"""Answers that either server takes at a time."""
DEMO = ("--gguf", "demo", "--n-ctx", "1024", "--max-queue", str(ROOM - 1))


@pytest.fixture(scope="session")
def device(tmp_path_factory):
    """A server that answers alone, behind a key."""
    with DeviceServer(tmp_path_factory.mktemp("device"), *DEMO, api_key="device-key") as server:
        yield server.ready()


@pytest.fixture(scope="session")
def paired(cloud, tmp_path_factory):
    """A server whose answers begin in the cloud, with eight tokens at least."""
    flags = ("--cloud", cloud.base_url, "--cloud-api-key", KEY, "--decode-budget", "8")
    with DeviceServer(tmp_path_factory.mktemp("paired"), *DEMO, *flags, **PATIENT) as server:
        yield server.connected()


@pytest.fixture
def local(device):
    with device.client() as client:
        yield client
