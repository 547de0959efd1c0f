"""In the worker: which prompt tokens the model attends to, read off vLLM's own attention while it prefills.

`windows` says which queries of a step count, `backends` see them pass, `recorder` scores, `shelf` keeps the scores
until the API server fetches them. Only `--worker-cls pdd_vllm_plugin.worker.PDDWorker` brings any of it in.
"""
