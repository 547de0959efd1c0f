import sys

import pytest
from third_party import install_example_policy

from pdd_core import BudgetRequest, CloudLoad
from pdd_vllm_plugin.budget_decider import BudgetDecider
from pdd_vllm_plugin.config import PDDConfig


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return install_example_policy(tmp_path_factory.mktemp("site"))


@pytest.fixture
def installed(package, monkeypatch):
    """Puts the package on the path of this process, and takes what was imported of it away afterwards."""
    monkeypatch.delenv("PDD_POLICIES", raising=False)
    monkeypatch.syspath_prepend(str(package))
    yield
    sys.modules.pop("pdd_batch_budget", None)


def granted(handoff_id):
    wish = BudgetRequest(handoff_id, num_prompt_tokens=900, max_tokens=256, decode_budget=64, priority=0)
    return BudgetDecider(PDDConfig()).decide(wish, CloudLoad(2, 0, 0.1))


@pytest.mark.usefixtures("installed")
def test_an_installed_package_wins_over_the_built_in_policies():
    assert granted("batch-0123456789abcdef") == (4, "batch_budget")
    assert granted("0123456789abcdef") == (64, "client")


@pytest.mark.usefixtures("installed")
def test_an_empty_allow_list_keeps_it_out(monkeypatch):
    monkeypatch.setenv("PDD_POLICIES", "")
    assert granted("batch-0123456789abcdef") == (64, "client")
    assert "pdd_batch_budget" not in sys.modules
