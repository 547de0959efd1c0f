"""What the routes share: the store, the engine, and the answers that stay the same for the server's life."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from pdd_core.fingerprint import fingerprint
from pdd_core.handoff import (
    BUDGET_POLICIES,
    BY_POST,
    INLINE_UPDATES,
    KV_HANDOVER,
    SHARED_STORE,
    TOKENIZER_DIGEST,
    CloudInfo,
    Limits,
    StructuredOutputs,
)
from pdd_core.kv.geometry import NoKV
from pdd_core.sampling_defaults import DefaultSamplingParams
from pdd_vllm_plugin.compat import api_process_count, engine_version, eos_ids
from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.deployment import engine_ranks, refine_method
from pdd_vllm_plugin.generate_recorder import GenerateRecorder
from pdd_vllm_plugin.handoff_names import ALONE
from pdd_vllm_plugin.handoff_spans import HandoffSpans
from pdd_vllm_plugin.handoff_store import HandoffStore
from pdd_vllm_plugin.kv.cell_answers import CellAnswers
from pdd_vllm_plugin.kv.handshake import NOT_ENABLED
from pdd_vllm_plugin.metrics import CloudMetrics
from pdd_vllm_plugin.prompt_refiner import PromptRefiner
from pdd_vllm_plugin.state_answers import Elsewhere, StateAnswers
from pdd_vllm_plugin.token_bytes import TokenBytes

if TYPE_CHECKING:
    from pdd_vllm_plugin.kv.shelves import Shelves
    from pdd_vllm_plugin.processes.other_processes import OtherProcesses


class HandoffService:
    """Made when the routes are attached, complete when the engine is there."""

    def __init__(self, metrics: CloudMetrics | None = None) -> None:
        self.config = PDDConfig()
        self.store = HandoffStore(self.config)
        self.engine_client: Any = None
        self.metrics = CloudMetrics(CollectorRegistry()) if metrics is None else metrics
        self.vocabulary: list[bytes | None] = []
        self.info_json = b"{}"
        self.tokenizer = ""
        """Digest of the tokenizer's fingerprint."""
        self.answers = StateAnswers(self)
        self.cells = CellAnswers(self.config, NOT_ENABLED, self.metrics)
        self.elsewhere: list[Elsewhere] = []
        """Asked in turn for a state that no process of this server has."""
        self.processes: OtherProcesses | None = None
        """The other API processes of this server; None if there is only this one."""

    def start(
        self,
        engine_client: Any,
        config: PDDConfig,
        served_model_name: str,
        processes: OtherProcesses | None = None,
        shelves: Shelves | NoKV = NOT_ENABLED,
    ) -> CloudInfo:
        """Hash the vocabulary (once: about 0.5 s for 262,144 tokens) and put the recorder around the engine."""
        self.config = config
        self.processes = processes
        self.cells = CellAnswers(
            config, shelves, self.metrics, processes=api_process_count(engine_client.vllm_config)
        )
        self.store = HandoffStore(config, names=ALONE if processes is None else processes.names)
        self.store.drop_cells = self.cells.drop
        self.metrics.configure(config, engine_ranks(engine_client.vllm_config))
        model_config = engine_client.vllm_config.model_config
        tokenizer = engine_client.get_tokenizer()
        method = refine_method(config, engine_client.vllm_config)
        self.vocabulary = TokenBytes(tokenizer).table()
        info = CloudInfo(
            plugin_version=version("pdd-device"),
            engine=f"vllm {engine_version()}",
            model=served_model_name,
            max_model_len=model_config.max_model_len,
            tokenizer=fingerprint(
                self.vocabulary,
                special_ids=tokenizer.all_special_ids,
                eos_ids=eos_ids(tokenizer, model_config),
            ),
            default_sampling_params=DefaultSamplingParams.of(
                model_config.get_diff_sampling_param(), source="the model's generation_config"
            ),
            features=[
                "decode_budget",
                BUDGET_POLICIES,
                "handoff_state",
                INLINE_UPDATES,
                BY_POST,
                KV_HANDOVER,
                TOKENIZER_DIGEST,
                *(() if method == "off" else ("refinement",)),
                *(() if config.store is None else (SHARED_STORE,)),
            ],
            refinement=method,
            structured_outputs=StructuredOutputs.model_validate(
                engine_client.vllm_config.structured_outputs_config, from_attributes=True
            ),
            limits=Limits(
                max_decode_budget=self.config.max_decode_budget,
                max_handoffs=self.config.max_handoffs,
                ttl_s=self.config.ttl_s,
                cancel_timeout_s=self.config.cancel_timeout_s,
            ),
            kv=shelves if isinstance(shelves, NoKV) else shelves.geometry,
        )
        self.info_json = info.model_dump_json().encode()
        self.tokenizer = info.tokenizer.digest
        recorder = GenerateRecorder(
            engine_client,
            self.store,
            model=served_model_name,
            tokenizer=self.tokenizer,
            metrics=self.metrics,
            cells=self.cells,
            refiner=None if method == "off" else PromptRefiner(engine_client, config, method, tokenizer),
            spans=HandoffSpans.of(engine_client.vllm_config),
        )
        engine_client.generate = recorder.generate
        self.engine_client = engine_client
        return info
