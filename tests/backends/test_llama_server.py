"""llama-server's command line, help, environment and log lines, without a llama-server."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from support.model_zoo import ZOO

from backends.base import InvalidModelError, LaunchOrder, Offload, ProbedDevice, ProbeError, decode_path
from backends.footprint import ContextPlan
from backends.gguf_settings import Lora, Task
from backends.guard.output import Progress
from backends.guard.plan import PLAN_VARIABLE, GuardPlan, read_plan
from backends.llama_server import binary
from backends.llama_server.backend import LlamaServerBackend, server_environment
from backends.llama_server.flags import command_line
from backends.llama_server.settings import LlamaServerSettings

HELP = """\
----- common params -----

-h,    --help, --usage                  print usage and exit
-t,    --threads N                      number of CPU threads (default: -1), see --not-a-flag
-c,    --ctx-size N                     size of the prompt context
-m,    --model FNAME                    model path to load
-kvu,  --kv-unified, -no-kvu, --no-kv-unified
                                        use single unified KV buffer, as --also-not-a-flag
-b,    --batch-size N                   logical maximum batch size
-ub,   --ubatch-size N                  physical maximum batch size
-fa,   --flash-attn [on|off|auto]       set Flash Attention use
-ctk,  --cache-type-k TYPE              KV cache data type for K
-ctv,  --cache-type-v TYPE              KV cache data type for V
-np,   --parallel N                     number of server slots
-dev,  --device <dev1,dev2,..>          comma-separated list of devices
-ngl,  --gpu-layers, --n-gpu-layers N   max. number of layers to store in VRAM
-sm,   --split-mode {none,layer,row,tensor}
-ts,   --tensor-split N0,N1,N2,...      fraction of the model
-mg,   --main-gpu INDEX                 the GPU to use
-ncmoe, --n-cpu-moe N                   keep the experts of the first N layers
-ot,   --override-tensor <tensor name pattern>=<buffer type>,...
-fit,  --fit [on|off]                   whether to adjust unset arguments
--repack, -nr, --no-repack              whether to enable weight repacking
--mlock                                 force system to keep model in RAM
--mmap, --no-mmap                       whether to memory-map model
--lora-scaled FNAME:SCALE,...           path to LoRA adapter
-mm,   --mmproj FILE                    path to a multimodal projector file
--embedding, --embeddings               restrict to embeddings
--rerank, --reranking                   enable reranking
--pooling {none,mean,cls,last,rank}     pooling type
-cram, --cache-ram N                    maximum cache size in MiB
--jinja, --no-jinja                     whether to use jinja
--reasoning-format FORMAT               where thoughts go
--chat-template JINJA_TEMPLATE          set custom template
--host HOST                             address to listen
-a,    --alias STRING                   names
--metrics                               enable metrics
--slots, --no-slots                     expose slots
--ui, --webui, --no-ui, --no-webui      Web UI
"""
KNOWN = binary.read_flags(HELP)
PLAN = ContextPlan(
    n_ctx=4096, n_seq_max=3, n_outputs_max=3, n_batch=512, n_ubatch=256, type_k="q8_0", type_v="f16", flash_attn=True
)


def settings(**keys: object) -> LlamaServerSettings:
    return msgspec.convert({"path": "/m.gguf", **keys}, LlamaServerSettings, dec_hook=decode_path)


def line(
    offload: Offload | None = None,
    task: Task = Task.GENERATE,
    known: frozenset[str] = KNOWN,
    plan: ContextPlan = PLAN,
    **keys: object,
) -> str:
    words = command_line(settings(**keys), plan, task, offload or Offload(), known, cache_ram_bytes=64 * 2**20)
    return f"{' '.join(words)} "


def test_a_help_names_flags_at_the_beginnings_of_its_entries_only() -> None:
    assert {"-c", "--ctx-size", "-no-kvu", "--no-kv-unified", "--n-gpu-layers", "--no-mmap"} <= KNOWN
    assert not {"--not-a-flag", "--also-not-a-flag"} & KNOWN


def test_every_part_of_a_placement_is_said() -> None:
    said = line(Offload(12, ("CUDA0", "Vulkan1"), (8.0, 4.0), 2, 1), split_mode="row")
    for words in (
        "--device CUDA0,Vulkan1 --n-gpu-layers 12 --split-mode row --main-gpu 1 --tensor-split 8,4 --n-cpu-moe 2 ",
        "--fit off ",
    ):
        assert words in said
    assert "--device none --n-gpu-layers 0 " in line()


def test_the_context_is_the_one_that_was_counted() -> None:
    said = line(n_threads=3, flash_attn=False, override_tensor=["ffn_.*_exps=CPU"])
    for words in (
        "--ctx-size 4096 --parallel 3 --kv-unified --batch-size 512 --ubatch-size 256 ",
        "--cache-type-k q8_0 --cache-type-v f16 --flash-attn off --threads 3 ",
        "--override-tensor ffn_.*_exps=CPU ",
        "--cache-ram 64 ",
    ):
        assert words in said


def test_chats_have_their_reasoning_apart_and_their_own_template() -> None:
    assert "--jinja --reasoning-format deepseek --chat-template {{x}} " in line(chat_template="{{x}}")


def test_embeddings_and_reranking_have_their_pooling() -> None:
    mean = msgspec.structs.replace(settings(), pooling="mean")
    assert "--embeddings --pooling mean " in line(
        task=Task.EMBED,
        plan=ContextPlan(256, 2, 2, 256, 256, "f16", "f16", True, pools_mean=True),
        pooling=mean.pooling,
    )
    assert "--embeddings --metrics" in line(task=Task.EMBED), "the file says how it pools"
    assert "--rerank --pooling rank " in line(task=Task.RANK)
    assert "--jinja" not in line(task=Task.RANK)


def test_old_and_new_binaries_are_told_in_their_own_words_how_to_load() -> None:
    new = KNOWN | {"--load-mode"}
    assert "--no-mmap --mlock " in line(use_mmap=False, use_mlock=True)
    assert "--load-mode mlock " in line(use_mmap=False, use_mlock=True, known=new)
    assert "--load-mode mmap+mlock " in line(use_mlock=True, known=new)
    assert "--load-mode none " in line(use_mmap=False, known=new)


def test_what_a_binary_lacks_is_refused_where_it_matters_and_left_out_where_not() -> None:
    assert "--offline" not in line()
    assert "--offline" in line(known=KNOWN | {"--offline"})
    with pytest.raises(InvalidModelError, match="knows no --kv-unified, which the model's settings need"):
        line(known=KNOWN - {"--kv-unified"})
    with pytest.raises(InvalidModelError, match="knows no --no-repack"):
        line(known=KNOWN - {"--no-repack"}, use_extra_bufts=False)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lora": [{"path": "/a,b.gguf"}]}, "cannot read a path with a comma"),
        ({"override_tensor": ["blk.{1,2}=CPU"]}, "takes no comma in a pattern"),
        ({"chat_template": "x" * 130_000}, "longer than"),
        ({"n_ubatch": 1024}, "must not exceed n_batch"),
    ],
)
def test_settings_that_cannot_be_said_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        settings(**keys)


def test_adapters_are_said_with_their_scale() -> None:
    lora = Lora(Path("/a.gguf"), 0.5)
    words = command_line(msgspec.structs.replace(settings(), lora=(lora,)), PLAN, Task.GENERATE, Offload(), KNOWN)
    assert "--lora-scaled /a.gguf:0.5 " in " ".join(words)


def test_nothing_in_the_environment_sets_its_flags() -> None:
    daemon = {"PATH": "/bin", "LLAMA_ARG_HOST": "0.0.0.0", "LLAMA_API_KEY": "k", "HF_TOKEN": "t", "GGML_VK_X": "1"}
    env = server_environment(daemon, {"LLAMA_ARG_TOOLS": "all", "MINE": "1"})
    assert env == {
        "PATH": "/bin", "GGML_VK_X": "1", "MINE": "1", "GGML_NO_BACKTRACE": "1", "LLAMA_SERVER_ROUTER_PORT": "1"
    }  # fmt: skip


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A program whose help is the one above, and which counts how often it is run."""
    path = tmp_path / "llama-server"
    path.write_text(f"#!/bin/sh\necho run >> {tmp_path}/runs\ncat <<'EOF'\n{HELP}EOF\n")
    path.chmod(0o755)
    return path


def launch(keys: dict[str, object], order: LaunchOrder) -> GuardPlan:
    spec = LlamaServerBackend().launch(settings(**keys), order)
    assert PLAN_VARIABLE in spec.env
    return read_plan(spec.env)


def test_a_model_is_described_with_one_run_of_its_binary(
    tmp_path: Path, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ZOO["llama"]().write(tmp_path / "m.gguf")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin:/bin")
    backend, keys = LlamaServerBackend(), {"path": str(model), "n_parallel": 2}
    found = backend.inspect(settings(**keys))
    assert (found.slots, found.capabilities.chat, found.reports_usage) == (2, True, False)
    assert backend.files(settings(**keys)) == (model, script)
    plan = launch(keys, LaunchOrder("m", tmp_path / "w.sock", 3, Offload(), portable=True))
    assert plan.argv[0] == str(script)
    assert "--no-repack" in plan.argv
    assert plan.argv[-4:] == ("--host", str(tmp_path / "w.sock"), "--alias", "m")
    assert (tmp_path / "runs").read_text() == "run\n"
    script.write_text("#!/bin/sh\necho '--other'\n")
    with pytest.raises(InvalidModelError, match="is no llama-server"):
        backend.inspect(settings(**keys))
    with pytest.raises(OSError, match="is no llama-server"):
        launch(keys, LaunchOrder("m", tmp_path / "w.sock", 3, Offload()))


def test_a_binary_that_is_not_there_is_a_verdict_on_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ZOO["llama"]().write(tmp_path / "m.gguf")
    monkeypatch.setenv("PATH", str(tmp_path))
    backend = LlamaServerBackend()
    with pytest.raises(InvalidModelError, match="no llama-server is on the PATH of swapd; give its file with binary"):
        backend.inspect(settings(path=str(model)))
    with pytest.raises(InvalidModelError, match="is no program that can be run"):
        backend.inspect(settings(path=str(model), binary=str(tmp_path)))
    assert backend.device_probe({}) is None


def test_its_lines_tell_how_far_a_load_is_and_that_a_request_runs(tmp_path: Path, script: Path) -> None:
    model = ZOO["llama"]().write(tmp_path / "m.gguf")
    keys = {"path": str(model), "binary": str(script)}
    progress = Progress(launch(keys, LaunchOrder("m", tmp_path / "w.sock", 3, Offload())).progress)
    state = b'cmd_child_to_router:state:{"state":"%s","payload":{"stages":["text_model"],"value":%s}}'
    assert progress.find([state % (b"loading", b"0.25")]) == (True, 0.25)
    assert progress.find([state % (b"ready", b"0.25")]) == (False, None)
    assert progress.find([b"I slot launch_slot_: id  1 | task 0 | processing task, is_child = 0"]) == (True, None)
    assert progress.find([b"I srv  update_slots: all slots are idle"]) == (False, None)


def test_its_devices_are_read_from_its_list() -> None:
    text = b"Available devices:\n  Vulkan0: llvmpipe (LLVM 15.0.6, 256 bits) (2048 MiB, 2000 MiB free)\n"
    (device,) = LlamaServerBackend().read_devices(text)
    assert device == ProbedDevice("Vulkan0", "llvmpipe (LLVM 15.0.6, 256 bits)", "gpu", 2048 << 20, 2000 << 20)
    assert LlamaServerBackend().read_devices(b"Available devices:\n  (none)\n") == ()
    with pytest.raises(ProbeError):
        LlamaServerBackend().read_devices(b"Segmentation fault")
