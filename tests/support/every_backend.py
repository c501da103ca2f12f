"""One daemon with a chat model and one for embeddings of each backend, and the second daemon that one of them is."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import gguf
from support.bert_files import write_bert
from support.gguf_files import smollm2_path
from support.llama_server_binary import llama_server
from support.running_daemon import RunningDaemon, running_daemon

SERVER = Path(__file__).with_name("openai_server.py")
BACKENDS = ("embedded", "llama-server", "command", "remote")
"""The chat models' names; with `-vectors` those of the models for embeddings."""
QWEN = """\
{%- if tools %}<|im_start|>system
# Tools

<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>

For each function call, return a json object within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}
{%- for m in messages %}
{%- if m.role == 'tool' %}<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response><|im_end|>
{% elif m.tool_calls %}<|im_start|>assistant
{%- if m.content %}
{{ m.content }}{% endif %}
{%- for call in m.tool_calls %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% else %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}
"""
"""Qwen 2.5's way with tools, in few words: both engines know it by its marks."""
HEAD = """
server:
  listen: 127.0.0.1:0
  state_dir: {directory}/state
  runtime_dir: {directory}/run
memory:
  budget: {{RAM: 2GiB}}
models:
"""
GGUF = """\
  {name}: {{{keys}path: {smollm2}, n_ctx: 2048, n_parallel: 2, n_threads: 1, use_extra_bufts: false, \
chat_template: {template}}}
  {name}-vectors: {{{keys}path: {bert}, n_ctx: 512, n_threads: 1, use_extra_bufts: false}}
"""
COMMAND = """\
  command:
    backend: command
    cmd: [{python}, {server}, --port, "${{PORT}}"]
    memory: {{RAM: 60MiB}}
    n_ctx: 2048
  command-vectors:
    backend: command
    cmd: [{python}, {server}, --uds, "${{SOCKET}}"]
    proxy: unix:${{SOCKET}}
    memory: {{RAM: 60MiB}}
    chat: false
    completions: false
    embeddings: true
"""
REMOTE = """\
  remote: {{backend: remote, proxy: '{url}/v1', health: /health, n_ctx: 2048}}
  remote-vectors: {{backend: remote, proxy: '{url}', chat: false, completions: false, embeddings: true}}
"""


def gguf_models(name: str, bert: Path, keys: str = "") -> str:
    return GGUF.format(name=name, keys=keys, smollm2=smollm2_path(), template=json.dumps(QWEN), bert=bert)


def command_models() -> str:
    return COMMAND.format(python=sys.executable, server=SERVER)


@asynccontextmanager
async def every_backend(directory: Path) -> AsyncIterator[RunningDaemon]:
    """The near daemon, up, with all of them; without llama-server where none runs."""
    bert = write_bert(directory / "bert.gguf", pooling=gguf.PoolingType.MEAN)
    near, far = directory / "near", directory / "far"
    near.mkdir()
    far.mkdir()
    async with running_daemon(far, HEAD.format(directory=far) + gguf_models("remote", bert)) as elsewhere:
        models = gguf_models("embedded", bert) + command_models() + REMOTE.format(url=elsewhere.url)
        binary = llama_server().path
        if binary is not None:
            models += gguf_models("llama-server", bert, f"backend: llama_server, binary: {binary}, ")
        async with running_daemon(near, HEAD.format(directory=near) + models) as daemon:
            yield daemon
