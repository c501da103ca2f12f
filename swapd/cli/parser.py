"""The commands and their options. Importing this loads no command: each is imported when it is run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from swapd import __version__
from swapd.activity.shapes import GROUPINGS
from swapd.cli.places import CONFIG_HELP

MIN_INTERVAL_S = 0.1

Command = Callable[[argparse.Namespace], int]


def build_parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    """`environ` gives `SWAPD_URL`, the default of `--url`."""
    parser = argparse.ArgumentParser(
        prog="swapd",
        description="Serves many GGUF models from one machine's memory, behind one OpenAI-compatible API.",
        epilog="exit codes: 0 done, 1 the request failed, 2 the command line is wrong",
    )
    parser.add_argument("--version", action="version", version=f"swapd {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_local_commands(commands)
    _add_client_commands(commands, environ)
    return parser


def _add_local_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = _add(commands, "serve", "local:serve", "run the daemon")
    source = serve.add_mutually_exclusive_group()
    source.add_argument("--config", metavar="FILE", type=Path, help=CONFIG_HELP)
    source.add_argument("--demo", action="store_true", help="serve the demonstration list instead of a file")
    serve.add_argument("--listen", metavar="HOST:PORT", type=_listen, help="in place of server.listen")
    serve.add_argument(
        "--open-to-network",
        action="store_true",
        help="may serve everybody in the network without keys, if server.open_to_network says so too",
    )
    serve.add_argument("--stop-at-eof", action="store_true", help="also stop when the standard input ends")

    _add(commands, "demo", "tour:demo", "start a daemon, ask two models in turn, watch them being swapped")

    check = _add(commands, "check", "local:check", "say what is wrong with a configuration and its models' files")
    check.add_argument("file", metavar="FILE", type=Path)

    importing = _add(commands, "import", "importing:import_file", "turn a llama-swap configuration into swapd's")
    importing.add_argument("file", metavar="llama-swap.yaml", type=Path)
    importing.add_argument("-o", "--output", metavar="FILE", type=Path, help="a new file; else the standard output")

    completion = _add(commands, "completion", "completion:completion", "print the script by which a shell completes")
    completion.add_argument("shell", choices=("bash", "zsh"))

    estimate = _add(commands, "estimate", "estimate:estimate", "say how much memory a model takes, before it runs")
    estimate.add_argument("models", metavar="MODEL|FILE.gguf", nargs="+", help="a configured model, or a model's file")
    estimate.add_argument("--config", metavar="FILE", type=Path, help=CONFIG_HELP)
    estimate.add_argument("--n-ctx", metavar="N", type=int, help="with this context in place of the settings'")
    estimate.add_argument(
        "--device",
        metavar="NAME[=SIZE]",
        type=_device,
        action="append",
        default=[],
        help="on this device and no other but RAM, or on one that has SIZE to give, such as CUDA0=24GiB; repeatable",
    )
    estimate.add_argument("--no-probe", action="store_true", help="without asking the engine")
    _add_json(estimate)

    simulate = _add(commands, "simulate", "simulate:simulate", "replay a trace of requests against several schedulers")
    source = simulate.add_mutually_exclusive_group(required=True)
    source.add_argument("trace", metavar="TRACE", type=Path, nargs="?", help="a file that `swapd record` has written")
    source.add_argument(
        "--synthetic",
        metavar="TRAFFIC",
        help="made-up requests for the configured models instead: zipf, or zipf:clients=12,rate=0.5,for=2h,burst=4",
    )
    simulate.add_argument("--seed", metavar="N", type=int, help="of made-up requests; the same ones for the same seed")
    simulate.add_argument("--config", metavar="FILE", type=Path, help=CONFIG_HELP)
    simulate.add_argument("--url", type=_url, help="a running daemon whose models' load times are to be used")
    _add_json(simulate)

    _add_key_commands(commands)

    _add_json(_add(commands, "devices", "local:devices", "list the memories that models can be placed in"))


def _add_key_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "make API keys"
    keys = commands.add_parser("key", help=summary, description=f"{summary.capitalize()}.")
    of_keys = keys.add_subparsers(metavar="COMMAND", required=True)
    new = _add(of_keys, "new", "keys:new", "make a key, print it once, and print its entry or append it to a file")
    new.add_argument("name", metavar="NAME", help="what the key is called in the log, the status and the queues")
    new.add_argument("-o", "--file", metavar="FILE", type=Path, help="append the entry to this file, new or not")
    new.add_argument(
        "--scope", metavar="SCOPE", action="append", default=[], help="inference (if none is given), metrics or admin"
    )
    new.add_argument("--model", metavar="MODEL", action="append", default=[], help="one that it may use; else all")
    new.add_argument("--priority", metavar="N", type=int, help="its class in queues, -100 to 100; higher goes first")
    new.add_argument("--weight", metavar="X", type=float, help="its share beside other clients', 0.01 to 100")
    new.add_argument("--per-user", action="store_true", help="believe server.client_header from it")
    new.add_argument("--no-structured", action="store_true", help="no grammars and schemas of its own")
    new.add_argument("--max-requests", metavar="N", type=int, help="at once")
    new.add_argument("--requests-per-minute", metavar="N", type=int)
    new.add_argument("--tokens-per-minute", metavar="N", type=int)
    new.add_argument("--expires", metavar="DAY", help="the last day on which it is taken, such as 2027-01-31")


def _add_client_commands(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], environ: Mapping[str, str]
) -> None:
    ps = _add(commands, "ps", "remote:ps", "list the models and what they are doing")
    _add_json(ps)
    load = _add(commands, "load", "remote:load", "load a model and wait until it is ready")
    load.add_argument("model", metavar="MODEL")
    unload = _add(commands, "unload", "remote:unload", "unload a model and wait until it is gone")
    which = unload.add_mutually_exclusive_group(required=True)
    which.add_argument("model", metavar="MODEL", nargs="?")
    which.add_argument("--all", action="store_true", help="every model that is loaded")
    doctor = _add(commands, "doctor", "doctor:doctor", "look for what is wrong: installation, drivers, files, models")
    doctor.add_argument("--no-tokens", action="store_true", help="do not ask each model for a token, which loads it")
    _add_json(doctor)
    top = _add(commands, "top", "top:top", "watch memory, models and requests live")
    top.add_argument("--interval", metavar="TIME", type=_interval, default=1.0, help="such as 500ms; 1s by itself")
    models = _add(commands, "models", "remote:models", "print the models' names, one a line")
    chat = _add(commands, "chat", "chat:chat", "talk with a model; with a prompt, or one in a pipe, for one answer")
    chat.add_argument("model", metavar="MODEL")
    chat.add_argument("prompt", metavar="PROMPT", nargs="*", help="what is asked; what a pipe brings follows it")
    chat.add_argument("--system", metavar="TEXT", default="", help="how the model is to be")
    pin = _add(commands, "pin", "remote:pin", "keep a model loaded, until the daemon ends or `swapd unpin`")
    pin.add_argument("model", metavar="MODEL")
    unpin = _add(commands, "unpin", "remote:unpin", "let a model go again when others need its room")
    unpin.add_argument("model", metavar="MODEL")
    pause = _add(commands, "pause", "remote:pause", "hand a GPU over: unload what is on it, let requests for it wait")
    pause.add_argument("device", metavar="DEVICE", help="a name that `swapd devices` prints")
    resume = _add(commands, "resume", "remote:resume", "use a GPU again that was handed over")
    resume.add_argument("device", metavar="DEVICE")
    cancel = _add(commands, "cancel", "remote:cancel", "end one request, waiting or running")
    cancel.add_argument("request", metavar="ID", help="of those that `swapd ps` lists, or an answer's X-Request-Id")
    profile = _add(commands, "profile", "profile:profile", "list the profiles, or put one in force")
    profile.add_argument("name", metavar="NAME", nargs="?")
    profile.add_argument("--off", action="store_true", help="no profile: everything as the file has it")
    _add_json(profile)
    usage = _add(commands, "usage", "usage:usage", "say what past requests took, by model, key or day")
    usage.add_argument("--by", choices=GROUPINGS, default=GROUPINGS[0])
    usage.add_argument("--since", metavar="TIME", type=_time, default="7d", help="how far back, such as 24h; else 7d")
    _add_json(usage)
    logs = _add(commands, "logs", "remote:logs", "print what a model's worker, or every worker, has written")
    logs.add_argument("model", metavar="MODEL", nargs="?")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with new lines as they come")
    record = _add(commands, "record", "record:record", "write down which requests come, for `swapd simulate`")
    record.add_argument("file", metavar="FILE", type=Path, help="a new file; no prompts or keys are written")
    record.add_argument(
        "--for", metavar="TIME", dest="for_s", type=_time, help="such as 10m or 24h; without it until Ctrl-C"
    )
    looking, changing = (
        (doctor, ps, top, models, usage, logs, record),
        (load, unload, pin, unpin, pause, resume, cancel),
    )
    for command in (*looking, *changing, chat, profile):
        command.add_argument(
            "--url",
            type=_url,
            default=environ.get("SWAPD_URL") or None,
            help="the daemon: http://HOST:PORT, HOST:PORT or unix:/path; else $SWAPD_URL, else the configuration's",
        )
        command.add_argument("--config", metavar="FILE", type=Path, help=CONFIG_HELP)
        command.add_argument(
            "--key-file",
            metavar="FILE",
            type=Path,
            help="a file with an API key; else $SWAPD_KEY_FILE, else the key itself in $SWAPD_API_KEY",
        )


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, target: str, summary: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(run=_deferred(target))
    return parser


def _interval(text: str) -> float:
    value_s = _time(text)
    if not MIN_INTERVAL_S <= value_s <= 60:
        raise argparse.ArgumentTypeError("must be from 100ms to 1m")
    return value_s


def _deferred(target: str) -> Command:
    """The function `module:name` of this package, imported when it is called."""
    module, _, name = target.partition(":")

    def run(arguments: argparse.Namespace) -> int:
        command: Command = getattr(import_module(f"swapd.cli.{module}"), name)
        return command(arguments)

    return run


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON: sizes in bytes, times in seconds")


def _listen(text: str) -> str:
    from swapd.config.address import parse_address

    return _checked(text, parse_address)


def _device(text: str) -> tuple[str, int | None]:
    """`NAME` or `NAME=SIZE`."""
    from swapd.config.quantities import parse_size

    name, sign, said = text.partition("=")
    if not name:
        raise argparse.ArgumentTypeError("write a device's name, or NAME=SIZE")
    if not sign:
        return name, None
    _checked(said, parse_size)
    return name, parse_size(said)


def _time(text: str) -> float:
    from swapd.config.quantities import parse_time

    _checked(text, parse_time)
    return parse_time(text)


def _url(text: str) -> str:
    from swapd.client import daemon_address

    return _checked(text, daemon_address)


def _checked(text: str, parse: Callable[[str], object]) -> str:
    try:
        parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text
