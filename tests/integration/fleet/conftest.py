"""Two replicas, a real vllm-router before them that keeps sessions, and what each replica says of itself."""

import os
import signal
from dataclasses import dataclass

import httpx2
import openai
import pytest
from cloud_support import KEY, wait_until
from fleet_example import fleet
from prometheus_client.parser import text_string_to_metric_families


@dataclass
class Replica:
    """One vLLM behind the router."""

    server: object

    def client(self):
        """Past the router."""
        return openai.OpenAI(base_url=self.server.base_url, api_key=KEY, max_retries=0)

    def samples(self):
        text = httpx2.get(f"{self.server.root_url}/metrics").text
        return [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def metric(self, name, **labels):
        """The sum of the samples that have these labels."""
        return sum(s.value for s in self.samples() if s.name == name and labels.items() <= s.labels.items())

    def kill(self):
        """As if the machine were gone: all of its processes at once, in the midst of whatever they do."""
        os.killpg(self.server.pid, signal.SIGKILL)


@dataclass
class Fleet:
    """A router and what is behind it. `url` is the router's, as an OpenAI client wants it."""

    url: str
    replicas: list

    def metric(self, name, **labels):
        """Of all replicas together."""
        return sum(replica.metric(name, **labels) for replica in self.replicas)

    def at_work(self):
        """Those that make an answer which has opted in."""
        return [replica for replica in self.replicas if replica.metric("pdd_running_requests")]

    def wait_still(self):
        wait_until(lambda: not self.at_work())


@pytest.fixture(scope="package")
def replicas(boots):
    """They are stopped as soon as nobody needs them: three gigabytes each."""
    servers = boots.of("replicas")
    yield servers
    servers.stop()


@pytest.fixture(scope="package")
def behind_router(replicas, tmp_path_factory):
    port = fleet.free_port()
    url = f"http://127.0.0.1:{port}"
    router = fleet.router(
        [server.root_url for server in replicas], port, tmp_path_factory.mktemp("router") / "log"
    )
    with router:
        fleet.wait_for(f"{url}/health", router, fleet.ROUTER_START_S)
        yield Fleet(f"{url}/v1", [Replica(server) for server in replicas])
