"""Ended handoff states in Valkey or Redis, for replicas behind a router that keeps no sessions.

Imported only where ``additional_config.pdd.store`` is set: docs/shared_store.md.
"""
