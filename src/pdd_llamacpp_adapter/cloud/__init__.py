"""The client of the cloud: what is sent to vLLM, and what comes back."""
