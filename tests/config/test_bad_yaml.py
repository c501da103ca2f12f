"""Bad files and the lines they are answered with."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

from swapd.config.load import MAX_FILE_BYTES, ConfigError, load, parse
from swapd.config.problems import MAX_PROBLEMS

FILE = Path("swapd.yaml")


def refusal(text: str, backends: dict) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(textwrap.dedent(text).lstrip("\n"), FILE, backends)
    return str(caught.value).splitlines()


def in_model(line: str) -> str:
    return f"models:\n  m:\n    path: m.gguf\n    {line}\n"


SECTIONS = [
    ("server: {listen: ':8686'}\nmodels: {}", 1, "server.listen", "0.0.0.0:PORT"),
    ("server:\n  listen: [127.0.0.1:1, localhost]\nmodels: {}", 2, "server.listen[1]", "lacks a port"),
    ("server:\n  listen:\n  - a:1\n  - a:1\nmodels: {}", 4, "server.listen[1]", "listed twice"),
    ("server: {listen: []}\nmodels: {}", 1, "server.listen", "at least one"),
    ("server: {listen: 'unix:swapd.sock'}\nmodels: {}", 1, "server.listen", "must be absolute"),
    ("server: {listen: '::1:8686'}\nmodels: {}", 1, "server.listen", '"[::1]:8686"'),
    ("server: {listen: a:99999}\nmodels: {}", 1, "server.listen", "from 0 to 65535"),
    ("server: {listen: 300.1.1.1:80}\nmodels: {}", 1, "server.listen", "IPv4"),
    ("server: {listen: 8686}\nmodels: {}", 1, "server.listen", "HOST:PORT"),
    ("server: {log_level: verbose}\nmodels: {}", 1, "server.log_level", "debug, info, warning or error"),
    ("server: {drain: 30}\nmodels: {}", 1, "server.drain", "write 30s"),
    ("server: {drain: 1:30}\nmodels: {}", 1, "server.drain", "write 90s"),
    ("server: {drain: 1m30s}\nmodels: {}", 1, "server.drain", "write 90s"),
    ("server: {drain: 2d}\nmodels: {}", 1, "server.drain", "a time from 0s to 24h"),
    ("server: {drain: 30sec}\nmodels: {}", 1, "server.drain", "write 30s"),
    ("server: {drain: 30 s}\nmodels: {}", 1, "server.drain", "write 30s"),
    ("server: {drain: -1s}\nmodels: {}", 1, "server.drain", "negative"),
    ("server: {drain: 25h}\nmodels: {}", 1, "server.drain", "from 0s to 24h"),
    ("server: {drain: }\nmodels: {}", 1, "server.drain", "not nothing"),
    ("server: {drain: [30s]}\nmodels: {}", 1, "server.drain", "not a list"),
    ("server: {drain: 32MiB}\nmodels: {}", 1, "server.drain", "no unit of time"),
    ("server: {max_body: 32M}\nmodels: {}", 1, "server.max_body", "write 32MiB"),
    ("server: {max_body: 32mib}\nmodels: {}", 1, "server.max_body", "write 32MiB"),
    ("server: {max_body: 10s}\nmodels: {}", 1, "server.max_body", "no unit of size"),
    ("server: {max_body: 80%}\nmodels: {}", 1, "server.max_body", "is a share"),
    ("server: {max_body: 0.5}\nmodels: {}", 1, "server.max_body", "no unit"),
    ("server: {max_body: 4TiB}\nmodels: {}", 1, "server.max_body", "from 1KiB to 1GiB"),
    ("server: {max_body: lots}\nmodels: {}", 1, "server.max_body", "not a size"),
    ("server: {max_body_bytes: 1}\nmodels: {}", 1, "server.max_body_bytes", "write max_body"),
    ("server: {lisen: a:1}\nmodels: {}", 1, "server.lisen", "did you mean listen?"),
    ("server: {state_dir: 7}\nmodels: {}", 1, "server.state_dir", 'in quotes: "7"'),
    ("server: {state_dir: ''}\nmodels: {}", 1, "server.state_dir", "must not be empty"),
    ("server: {state_dir: ~no-such-user-here/x}\nmodels: {}", 1, "server.state_dir", "not known here"),
    ("server: [a]\nmodels: {}", 1, "server", "must be keys"),
    ("memory: {budget: 80%}\nmodels: {}", 1, "memory.budget", "{default: 80%}"),
    ("memory:\n  budget:\n    RAM: 22\nmodels: {}", 3, "memory.budget.RAM", "write 22GiB"),
    ("memory: {budget: {RAM: 101%}}\nmodels: {}", 1, "memory.budget.RAM", "at most 100%"),
    ("memory: {budget: {RAM: 0%}}\nmodels: {}", 1, "memory.budget.RAM", "above 0%"),
    ("memory: {budget: {cpu: 1GiB}}\nmodels: {}", 1, "memory.budget.cpu", "write RAM"),
    ("memory: {budget: {Default: 1GiB}}\nmodels: {}", 1, "memory.budget.Default", "spelled default"),
    ("memory: {budget: {CUDA0: yes}}\nmodels: {}", 1, "memory.budget.CUDA0", "not a size"),
    ("memory: {reserve: 5%}\nmodels: {}", 1, "memory.reserve", "is a share"),
    ("queue: {max_waiting: 0}\nmodels: {}", 1, "queue.max_waiting", "from 1 to 100000"),
    ("queue: {max_waiting: 1_000}\nmodels: {}", 1, "queue.max_waiting", "without _"),
    ("queue: {max_waiting: 017}\nmodels: {}", 1, "queue.max_waiting", "write 17"),
    ("queue: {max_waiting: 0x10}\nmodels: {}", 1, "queue.max_waiting", "in decimal"),
    ("queue: {max_waiting: 1e3}\nmodels: {}", 1, "queue.max_waiting", "a whole number"),
    ("queue: {max_waiting: '10'}\nmodels: {}", 1, "queue.max_waiting", "not the text '10'"),
    ("queue: {max_waiting: true}\nmodels: {}", 1, "queue.max_waiting", "a whole number"),
    ("queue: {max_waiting: 99999999999999999999999}\nmodels: {}", 1, "queue.max_waiting", "too large"),
    ("turns: {turn: 2h}\nmodels: {}", 1, "turns.turn", "from 0s to 1h"),
    ("models: {}\nmodel: {}", 2, "model", "did you mean models"),
    ("server: {}", 1, "models", "models: {}"),
    ("models: [a]", 1, "models", "must be keys"),
]

MODELS = [
    ("n_ctx: 8k", "n_ctx", "a whole number from 256 to 16777216, not '8k'"),
    ("n_ctx: 1:30", "n_ctx", "some tools read it as 90"),
    ("n_ctx: 017", "n_ctx", "write 17"),
    ("n_ctx: 100", "n_ctx", "from 256"),
    ("n_ctx: 8192.0", "n_ctx", "a whole number"),
    ("n_ctx: '8192'", "n_ctx", "not the text '8192'"),
    ("n_ctx:", "n_ctx", "not nothing"),
    ("use_mmap: yes", "use_mmap", "must be true or false, not 'yes'; write true"),
    ("use_mmap: OFF", "use_mmap", "write false"),
    ("flash_attn: on", "flash_attn", "must be auto, true or false, not 'on'; write true"),
    ("n_gpu_layers: -1", "n_gpu_layers", "a whole number of at least 0, all or auto, not '-1'"),
    ("type_k: q8", "type_k", "q8_0, not 'q8'"),
    ("tensor_split: 3", "tensor_split", "a list"),
    ("lora: a.gguf", "lora", "a list, each item a block with path and scale, not 'a.gguf'"),
    ("lora: [a.gguf]", "lora[0]", "a block with path and scale, not 'a.gguf'"),
    ("lora: [{scale: 1.0}]", "lora[0]", "needs path"),
    ("lora: [{path: a, size: 1}]", "lora[0]", "has no key size"),
    ("lora: [{path: a, scale: 101}]", "lora[0].scale", "a number from -100 to 100, not '101'"),
    ("lora: [{path: ''}]", "lora[0].path", "must not be empty"),
    ("tensor_split: [3, .inf]", "tensor_split[1]", "finite"),
    ("tensor_split: [3, x]", "tensor_split[1]", "a number of at least 0, not 'x'"),
    ("devices: [0]", "devices[0]", "text, not '0'"),
    ("nctx: 1", "nctx", "did you mean n_ctx"),
    ("idle_unload_s: 1", "idle_unload_s", "write idle_unload"),
    ("n_ubatch: 4096", "n_ubatch", "must not exceed n_batch"),
    ("{type_v: q8_0, flash_attn: false}", None, ""),
    ("idle_unload: 10", "idle_unload", "write 10s"),
    ("idle_unload: neve", "idle_unload", "not a time"),
    ("load_timeout: 0s", "load_timeout", "from 1s to 24h"),
    ("pin: no", "pin", "write false"),
    ("replicas: 9", "replicas", "from 1 to 8"),
    ("priority: 1000", "priority", "from -100 to 100"),
    ("backend: vllm", "backend", "installed: llama_cpp, remote"),
    ("backend: 3", "backend", 'in quotes: "3"'),
    ("aliases: gpt", "aliases", "write [gpt]"),
    ("aliases: [a, a]", "aliases[1]", "listed twice"),
    ("aliases: [3]", "aliases[0]", 'in quotes: "3"'),
    ('aliases: ["a\\nb"]', "aliases[0]", "control characters"),
    ("aliases: [m]", "aliases[0]", "taken by models.m on line 2"),
    ("aliases: {m: {}}", "aliases.m", "taken by models.m on line 2"),
    ("aliases: {a: {param: {}}}", "aliases.a.param", "did you mean params"),
    ("aliases: {a: {params: {set: {model: x}}}}", "aliases.a.params.set.model", "the request itself"),
    ("aliases: {a: fast}", "aliases.a", "must be keys"),
    ("aliases: {' a': {}}", "aliases. a", "space"),
    ("model_name: 3", "model_name", 'in quotes: "3"'),
    ("model_name: ''", "model_name", "empty"),
    ("unlisted: no", "unlisted", "write false"),
    ("name: ''", "name", "empty"),
    ("description: 3", "description", 'in quotes: "3"'),
    ('description: "a\\nb"', "description", "control characters"),
    ("metadata: [a]", "metadata", "not a list"),
    ("metadata: {a: yes}", "metadata.a", "may mean two things"),
    (f"metadata: {{a: {'x' * 4100}}}", "metadata", "4096 are allowed"),
    ("env: {A: 1}", "env.A", 'in quotes: "1"'),
    ("env: {LLAMA_ARG_CTX_SIZE: '1'}", "env.LLAMA_ARG_CTX_SIZE", "refused|override"),
    ("env: {'A=B': x}", "env.A=B", "environment variable"),
    ('env: {A: "\\0"}', "env.A", "none of them zero"),
    ("env: [A=1]", "env", "not a list"),
    ("params: {sett: {}}", "params.sett", "did you mean set"),
    ("params: {set: {stream: true}}", "params.set.stream", "the request itself"),
    ("params: {set: {a: yes}}", "params.set.a", "may mean two things"),
    ("params: {set: {a: {b: ~}}}", "params.set.a.b", "a block of these"),
    ("params: {set: {a: 1}, strip: [a]}", "params", "both set and stripped"),
    ("params: {strip: a}", "params.strip", "write [a]"),
    ("path: twice", "path", "is given twice; the first is on line 3"),
    ("<<: {n_ctx: 512}", None, ""),
]

STRUCTURE = [
    ("", 1, "file", "is empty"),
    ("# nothing\n\n", 1, "file", "is empty"),
    ("---\n...\n", 1, "file", "is empty"),
    ("text", 1, "file", "must be keys"),
    ("- a", 1, "file", "must be keys"),
    ("models: {}\n---\nmodels: {}\n", 2, "file", "second document"),
    ("server:\n\tlisten: a:1\n", 2, "syntax", "a tab cannot indent"),
    ("models:\n  m:\n  \tpath: x\n", 3, "syntax", "a tab cannot indent"),
    ("server:\n  listen: [::1]:8686\n", 2, "syntax", 'write "[::1]:8686"'),
    ("models:\n  m:\n    path: a: b\n", 3, "syntax", "in quotes"),
    ('models:\n  m:\n    path: "x\n', 4, "syntax", "line 3"),
    ("models: {}\n\x00", 2, "syntax", "not allowed"),
    ("models:\n  7: {path: x}\n", 2, "models.7", 'write it in quotes: "7"'),
    ("models:\n  null: {path: x}\n", 2, "models.null", "must be text"),
    ("models:\n  ? [a]\n  : {path: x}\n", 2, "models", "a key must be text"),
    ("a: &a b\nmodels:\n  *a : {path: x}\n", 3, "models", "cannot be an alias"),
    ("models:\n  m: &m {path: *m}\n", 2, "models.m.path", "contains itself"),
    ("models: *nowhere\n", 1, "models", "no anchor"),
    ("models:\n  m: !!python/object/apply:os.system [x]\n", 2, "models.m", "tag"),
    ("models: !!map {}\n", 1, "models", "tag"),
    ("models:\n  m:\n    <<: {path: x}\n", 3, "models.m", "merge keys"),
    ("models:\n  m:\n", 2, "models.m.path", "is missing"),
    ("models:\n  m: x.gguf\n", 2, "models.m", "must be keys"),
    ("models:\n  '': {path: x}\n", 2, "models.''", "empty"),
    ("models:\n  ' a': {path: x}\n", 2, "models. a", "space"),
    ('models:\n  "a\\nb": {path: x}\n', 2, "models.'a\\nb'", "control characters"),
    ("models:\n  a: {path: x, aliases: [c]}\n  b: {path: x, aliases: [c]}\n", 3, "models.b.aliases[0]", "line 2"),
    ("models:\n  a: {path: x, aliases: [b]}\n  b: {path: x}\n", 2, "models.a.aliases[0]", "models.b on line 3"),
    ("models:\n  a: {path: x, aliases: {b: {}}}\n  b: {path: x}\n", 2, "models.a.aliases.b", "models.b on line 3"),
    ("models:\n  r: {backend: remote, url: x, path: y}\n", 2, "models.r.path", "not a key"),
    ("models:\n  r: {backend: remote, url: x, weights: [1, a]}\n", 2, "models.r.weights[1]", "a number"),
    ("models:\n  r:\n    backend: remote\n    url: x\n    headers:\n      a: {b: x}\n", 5, "models.r.headers", "block"),
    ("defaults: {aliases: [a]}\nmodels: {}\n", 1, "defaults.aliases", "one model"),
    ("defaults: {n_ctz: 1}\nmodels: {}\n", 1, "defaults.n_ctz", "did you mean n_ctx"),
    ("defaults: {n_ctx: x}\nmodels: {}\n", 1, "defaults.n_ctx", "a whole number"),
    ("defaults: {pin: yes}\nmodels: {}\n", 1, "defaults.pin", "write true"),
    ("defaults: {backend: x}\nmodels: {}\n", 1, "defaults.backend", "installed"),
    (
        "defaults:\n  n_batch: 512\nmodels:\n  r: {backend: remote, url: x}\n",
        2,
        "defaults.n_batch",
        "models.r has the backend remote",
    ),
]


@pytest.mark.parametrize(("text", "line", "key", "gist"), SECTIONS + STRUCTURE)
def test_a_bad_file_is_answered_with_line_key_and_remedy(text, line, key, gist, backends):
    lines = refusal(text, backends)
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"swapd.yaml:{line}: {key}: "), lines
    assert gist in lines[0]


@pytest.mark.parametrize(("line", "key", "gist"), [case for case in MODELS if case[1]])
def test_a_bad_model_key_is_answered_with_line_key_and_remedy(line, key, gist, backends):
    lines = refusal(in_model(line), backends)
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"swapd.yaml:4: models.m.{key}: "), lines
    assert any(each in lines[0] for each in gist.split("|"))


def test_all_problems_of_a_file_are_found_in_one_pass_in_the_files_order(backends):
    lines = refusal(
        """
        server: {drain: 30}
        queue: {timeout: 5}
        models:
          a: {path: x, n_ctx: big, n_ctx: 512, use_mmap: on}
          b: {pathe: y}
        """,
        backends,
    )
    assert [line.split(": ")[:2] for line in lines] == [
        ["swapd.yaml:1", "server.drain"],
        ["swapd.yaml:2", "queue.timeout"],
        ["swapd.yaml:4", "models.a.n_ctx"],
        ["swapd.yaml:4", "models.a.n_ctx"],
        ["swapd.yaml:4", "models.a.use_mmap"],
        ["swapd.yaml:5", "models.b.path"],
        ["swapd.yaml:5", "models.b.pathe"],
    ]


def test_a_wrong_default_is_reported_once_however_many_models_inherit_it(backends):
    models = "".join(f"  m{index}: {{path: x}}\n" for index in range(30))
    assert len(refusal(f"defaults: {{n_ctx: 1, pin: on}}\nmodels:\n{models}", backends)) == 2


def test_the_list_of_problems_is_bounded_and_says_how_many_are_left_out(backends):
    models = "".join(f"  m{index}: {{}}\n" for index in range(500))
    lines = refusal(f"models:\n{models}", backends)
    assert len(lines) == MAX_PROBLEMS + 1
    assert lines[-1] == "swapd.yaml: and 480 more"


def test_a_file_of_nothing_but_mistakes_searches_for_close_names_only_as_often_as_it_shows_them(backends, monkeypatch):
    searches = []
    monkeypatch.setattr("swapd.config.readers.close_names", lambda name, known: searches.append(name) or "")
    keys = "".join(f"  n_ctx{index}: 3\n" for index in range(5000))
    lines = refusal(f"defaults:\n{keys}queue:\n{keys}models: {{}}", backends)
    assert lines[-1] == "swapd.yaml: and 9980 more"
    assert len(searches) == MAX_PROBLEMS


def test_a_combination_that_the_backend_refuses_names_the_key(backends):
    [line] = refusal("models:\n  m:\n    path: x\n    flash_attn: false\n    type_v: q8_0\n", backends)
    assert line.startswith("swapd.yaml:5: models.m.type_v: type_v q8_0 needs flash_attn")


def test_long_and_unprintable_values_are_cut_and_escaped(backends):
    [line] = refusal(in_model('n_ctx: "\\e[31m' + "x" * 10_000 + '"'), backends)
    assert len(line) < 300
    assert "\x1b" not in line


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_deep_nesting_is_refused_and_never_exhausts_the_stack(opening, backends):
    lines = refusal("models: " * (opening != "- ") + opening * 20_000, backends)
    assert len(lines) == 1
    assert lines[0].startswith("swapd.yaml:1: ")


def test_aliases_cannot_multiply_a_small_file_into_a_large_one(backends):
    bomb = "l0: &l0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )
    [line] = refusal(bomb, backends)
    assert "aliases included" in line


def test_aliases_cannot_nest_beyond_the_bound(backends):
    chain = "l0: &l0 [x]\n" + "".join(f"l{n}: &l{n} [*l{n - 1}]\n" for n in range(1, 60))
    [line] = refusal(chain, backends)
    assert "levels deep" in line


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "line", "gist"),
    [
        (b"models: {}\n# caf\xe9\n", 2, "not UTF-8"),
        ("models: {}\n".encode("utf-16"), 1, "UTF-16"),
        (b"#" * (MAX_FILE_BYTES + 1), 1, "larger than 1024KiB"),
    ],
)
def test_a_file_that_is_no_text_of_ours_is_refused(content, line, gist, tmp_path, backends):
    path = write(tmp_path / "c.yaml", content)
    with pytest.raises(ConfigError) as caught:
        load(path, backends)
    assert str(caught.value).startswith(f"{path}:{line}: file: ")
    assert gist in str(caught.value)


def test_a_missing_file_a_directory_and_a_pipe_are_refused_without_waiting(tmp_path, backends):
    os.mkfifo(tmp_path / "pipe")
    for path, gist in ((tmp_path / "no", "No such file"), (tmp_path, "irectory"), (tmp_path / "pipe", "regular")):
        with pytest.raises(ConfigError, match=gist):
            load(path, backends)


def test_text_with_lone_surrogates_is_refused_not_raised(backends):
    assert refusal("models: {'\ud800': {path: x}}", backends)[0].startswith("swapd.yaml:1: syntax: ")
