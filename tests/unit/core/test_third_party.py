import json
import os
import subprocess
import sys

from third_party import install_example_policy

ASK = """
import json
from pdd_core import BudgetRequest, CloudLoad
from pdd_vllm_plugin.admission import budget_policies, decide_budget
from pdd_vllm_plugin.config import PDDConfig

def budget(handoff_id):
    wish = BudgetRequest(handoff_id, num_prompt_tokens=900, max_tokens=256, decode_budget=64, priority=0)
    return decide_budget(budget_policies(PDDConfig()), wish, CloudLoad(2, 0, 0.1), PDDConfig())

print(json.dumps([budget("batch-0123456789abcdef"), budget("0123456789abcdef")]))
"""


def test_an_installed_package_wins_over_the_built_in_policies(tmp_path):
    environ = {**os.environ, "PYTHONPATH": str(install_example_policy(tmp_path))}
    answer = subprocess.run([sys.executable, "-c", ASK], env=environ, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == [[4, "batch_budget"], [64, "client"]]


def test_an_empty_allow_list_keeps_it_out(tmp_path):
    environ = {**os.environ, "PYTHONPATH": str(install_example_policy(tmp_path)), "PDD_POLICIES": ""}
    answer = subprocess.run([sys.executable, "-c", ASK], env=environ, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == [[64, "client"], [64, "client"]]
