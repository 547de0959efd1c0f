"""The OpenAI-compatible server on the device: Starlette routes over one `Runtime`.

`app.create_app` makes the application, `run.serve` runs it. Needs starlette, uvicorn and prometheus-client.
"""
