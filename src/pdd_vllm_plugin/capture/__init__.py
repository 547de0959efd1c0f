"""In the worker: which prompt tokens the model attends to, read off vLLM's own attention while it prefills.

`windows` finds the queries of a step that count, `backends` pass them on, `window_scorer` scores the prompt, and
`score_store` keeps the scores until the API server fetches them.

Only `--worker-cls pdd_vllm_plugin.worker.PDDWorker` brings any of it in.
"""
