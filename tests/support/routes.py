"""Every route of the daemon, as the application really has them."""

from __future__ import annotations

from support.front_door import ScriptedDoor, book_in_memory

from swapd.config.schema import Config
from swapd.http.server import make_app
from swapd.observe.metrics import Metrics


def all_routes(model: str = "org/tiny") -> list[tuple[str, str, str]]:
    """Method, pattern and a path of each. Those that take a model's name get this one."""
    with book_in_memory() as book:
        app = make_app(ScriptedDoor(), Config, Metrics(), book)
    found = []
    for route in app.router.routes():
        assert route.resource is not None
        pattern = route.resource.canonical
        of_model = "/models/" in pattern or "/logs/" in pattern
        path = pattern.replace("{id}", model if of_model else "r1")
        path = path.replace("{name}", "main.js" if pattern.startswith("/ui/") else "CUDA0")
        path = path.replace("{target}", f"{model}/health").replace("{digest}", "sha256:0")
        found.append((route.method.replace("*", "GET"), pattern, path))
    return found
