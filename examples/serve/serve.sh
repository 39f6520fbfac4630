#!/usr/bin/env bash
# Starts a pruned vLLM server, asks it about a picture, full and pruned, and stops it.
#
#     examples/serve/serve.sh llava-hf/llava-1.5-7b-hf picture.jpg "What is the cat doing?"
#
# Needs `pip install '.[vllm]' openai`. POLICY, KEEP and PORT may be set; further arguments go to `vllm serve`. SERVE is
# another command than that, as "python -m vllm.entrypoints.openai.api_server --model".
set -euo pipefail
model=${1:?a model}; picture=${2:?a picture}; question=${3:?a question}
shift 3
port=${PORT:-8000}
log=$(mktemp)

# The server is of a process group of its own, so that all its processes can be stopped.
set -m
TOKENPRUNE_POLICY=${POLICY:-divprune} TOKENPRUNE_KEEP=${KEEP:-0.25} \
    ${SERVE:-vllm serve} "$model" --host 127.0.0.1 --port "$port" --trust-request-mm-kwargs "$@" > "$log" 2>&1 &
server=$!
set +m
trap 'kill -TERM -- "-$server" 2> /dev/null || true; wait "$server" 2> /dev/null || true' EXIT

until curl --silent --fail --output /dev/null "http://127.0.0.1:$port/health"; do
    if ! kill -0 "$server" 2> /dev/null; then
        tail -n 30 "$log" >&2
        exit 1
    fi
    sleep 1
done
python "$(dirname "$0")/ask.py" "$picture" "$question" --url "http://127.0.0.1:$port/v1" --keep 1.0 "${KEEP:-0.25}"
