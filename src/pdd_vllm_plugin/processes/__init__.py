"""Several API processes of one vLLM (``--api-server-count``): each has its handoffs, any answers for all.

docs/adr/017-api-processes-share-names-not-states.md has the reasons.
"""
