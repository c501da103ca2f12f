"""Spans of a whole daemon, at a collector."""

from __future__ import annotations

from pathlib import Path

import aiohttp
from support.collector import attributes, collector
from support.running_daemon import running_daemon, scripted_yaml, stop

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CHAT = "/v1/chat/completions"


async def test_a_daemon_sends_a_requests_spans_with_its_load_and_its_tokens_and_never_its_prompt(
    tmp_path: Path,
) -> None:
    with collector() as collected:
        endpoint = f"  otlp_endpoint: {collected.url}\n"
        yaml = scripted_yaml(tmp_path, "  a: {path: a.model, memory_mib: 100, load_s: 0.2}\n", server=endpoint)
        async with running_daemon(tmp_path, yaml) as daemon, aiohttp.ClientSession(daemon.url) as http:
            body = {"model": "a", "stream": True, "messages": [{"role": "user", "content": "tokens=4 canary-prompt"}]}
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "mine"}
            async with http.post(CHAT, json=body, headers=headers) as answer:
                assert b"[DONE]" in await answer.read()
            stop(daemon)
            # What is queued goes out at the end.
            assert await daemon.process.wait() == 0
        request, load, queue, work = map(collected.named, (CHAT, "load", "queue", "generate"))
    told = attributes(request)
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    assert (told["swapd.request_id"], told["gen_ai.request.model"]) == ("mine", "a")
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (7, 4)
    assert load.parent_span_id == queue.span_id
    assert load.end_time_unix_nano - load.start_time_unix_nano >= 0.2e9
    assert request.start_time_unix_nano < work.start_time_unix_nano <= work.events[0].time_unix_nano
    assert b"canary" not in b"".join(collected.bodies)
