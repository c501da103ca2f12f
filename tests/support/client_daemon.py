"""A daemon for the clients that people use: SmolLM2 for chats, with and without a template for tools, and tiny models
for embeddings and reranking."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import gguf
from support.bert_files import write_bert
from support.gguf_files import smollm2_path
from support.running_daemon import RunningDaemon, running_daemon

HERMES = """\
{%- if tools %}<|im_start|>system
Tools: {% for tool in tools %}{{ tool | tojson }}{% endfor %}
Call them like this: <tool_call>{"name": "NAME", "arguments": {}}</tool_call><|im_end|>
{% endif %}
{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content or '' }}
{%- for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}
"""
THINKING = """\
{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.reasoning_content %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{{ m.content or '' }}<|im_end|>
{% endfor %}<|im_start|>assistant
<think>
{% if enable_thinking is defined and not enable_thinking %}
</think>

{% endif %}
"""
THINKER = "  thinker: {{path: {smollm2}, n_ctx: 512, n_parallel: 1, chat_template: {thinking}}}\n"
"""A model whose answers are all reasoning, unless the template is told to leave it out."""
CONFIG = """
server:
  listen: 127.0.0.1:0
  state_dir: {directory}/state
  runtime_dir: {directory}/run
memory:
  budget: {{RAM: 1GiB}}
defaults: {{use_extra_bufts: false, n_threads: 1}}
models:
  smol: {{path: {smollm2}, n_ctx: 2048, n_parallel: 2, chat_template: {template}}}
  vectors: {{path: {directory}/bert.gguf, n_ctx: 512}}
"""


@asynccontextmanager
async def client_daemon(directory: Path, *, thinker: bool = False) -> AsyncIterator[RunningDaemon]:
    """The daemon, up, with `THINKER` if asked."""
    write_bert(directory / "bert.gguf", pooling=gguf.PoolingType.MEAN)
    text = (CONFIG + (THINKER if thinker else "")).format(
        directory=directory,
        smollm2=smollm2_path(),
        template=json.dumps(HERMES),
        thinking=json.dumps(THINKING),
    )
    async with running_daemon(directory, text) as daemon:
        yield daemon
