"""Ask a vLLM server about a picture with OpenAI's client, once for each budget; answers come token by token.

    python examples/serve/ask.py picture.jpg "What is the cat doing?" --keep 1.0 0.25

Needs `pip install openai`, and a server that was started with --trust-request-mm-kwargs (see `serve.sh`).
"""

from __future__ import annotations

import argparse
import base64
import mimetypes
import sys
from pathlib import Path

from openai import APIStatusError, OpenAI


def address(picture: str) -> str:
    """What a request names a picture by: its address, or the content of a file."""
    if picture.startswith(("http://", "https://", "data:")):
        return picture
    kind = mimetypes.guess_type(picture)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(Path(picture).read_bytes()).decode()}"


def number(text: str) -> float | int:
    """`64` is a number of tokens, `0.25` a ratio."""
    return int(text) if text.isdigit() else float(text)


def main() -> int:
    parser = argparse.ArgumentParser(description="Ask a vLLM server about a picture, pruned by tokenprune.")
    parser.add_argument("picture", help="a file or an address")
    parser.add_argument("question")
    parser.add_argument("--url", default="http://localhost:8000/v1", help="of the server (default: %(default)s)")
    parser.add_argument("--model", help="its name on the server (default: the only one)")
    parser.add_argument("--keep", type=number, nargs="+", default=[1.0, 0.25], help="budgets (default: 1.0 0.25)")
    parser.add_argument("--max-tokens", type=int, default=128)
    options = parser.parse_args()

    client = OpenAI(base_url=options.url, api_key="none")
    model = options.model or client.models.list().data[0].id
    picture = {"type": "image_url", "image_url": {"url": address(options.picture)}}
    question = {"type": "text", "text": options.question}
    for keep in options.keep:
        try:
            stream = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": [picture, question]}],
                max_tokens=options.max_tokens,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"mm_processor_kwargs": {"keep": keep}},
            )
            sys.stdout.write(f"keep={keep}: ")
            for part in stream:
                if part.choices:
                    sys.stdout.write(part.choices[0].delta.content or "")
                    sys.stdout.flush()
                if part.usage:
                    used = part.usage
                    sys.stdout.write(f"\n  {used.prompt_tokens} prompt tokens, {used.completion_tokens} new ones\n")
        except APIStatusError as error:
            sys.stderr.write(f"the server refused keep={keep}: {error.message}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
