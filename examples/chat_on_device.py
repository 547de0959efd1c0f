"""A chat whose answers begin in the cloud and end on this machine, with OpenAI's own interface.

    python examples/chat_on_device.py --gguf model.gguf --cloud http://127.0.0.1:8000/v1 "Why is the sky blue?"

Several questions make a conversation: the device keeps what it has read of it. Without --cloud it answers alone.
"""

import argparse
import os

from pdd_llamacpp_adapter import PDDevice


def main() -> None:
    """Answer the questions, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", nargs="+")
    parser.add_argument("--gguf", required=True, help="a GGUF of the model that the cloud serves")
    parser.add_argument("--cloud", help="the cloud, such as http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default=os.environ.get("VLLM_API_KEY"), help="the cloud's key")
    parser.add_argument("--max-tokens", type=int, default=120)
    options = parser.parse_args()
    messages = []
    with PDDevice(options.gguf, cloud_url=options.cloud, cloud_api_key=options.api_key) as device:
        for question in options.questions:
            messages.append({"role": "user", "content": question})
            stream = device.chat.completions.create(
                model=device.model, messages=messages, max_tokens=options.max_tokens, stream=True
            )
            answer = ""
            for chunk in stream:
                text = chunk.choices[0].delta.content or ""
                answer += text
                print(text, end="", flush=True)
            messages.append({"role": "assistant", "content": answer})
            tokens = chunk.pdd["tokens"]
            print(f"\n[cloud: {tokens['cloud']}, device: {tokens['device']}, read before: {tokens['reused']}]")


if __name__ == "__main__":
    main()
