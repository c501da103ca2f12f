"""Which model a name leads to, and for a virtual model how its targets stand.

Owns what pins, aliases and virtual models mean. Reads the ledger and the entries in force, and gates nothing: the core
decides about each target when the request arrives there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swapd.config.schema import Config, Model, Virtual
from swapd.core.admission import newcomers_wait_s
from swapd.core.departures import serves
from swapd.core.ledger import Ledger
from swapd.core.planner import hopeless
from swapd.core.records import LOADING_STATES
from swapd.core.records import Model as LedgerModel
from swapd.core.routing import Standing, attempts
from swapd.core.turns import start_s, usual_service_s
from swapd.errors import ModelDisabledError, SwapdError, UnknownModelError
from swapd.pool import catalog
from swapd.pool.entries import Entries
from swapd.pool.lease import Ability, Sense
from swapd.pool.snapshot import listed_model
from swapd.pool.status import ListedModel, ProfileStatus, VirtualStatus


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes that names `asked`."""

    asked: str
    targets: tuple[str, ...]
    """Ids or aliases of models in force; at least one."""
    virtual: Virtual | None = None
    """What chooses among the targets; None where there is one, which is final."""


class Routes:
    def __init__(self, ledger: Ledger, entries: Entries, now_s: Callable[[], float]) -> None:
        self._ledger = ledger
        self._entries = entries
        self._now_s = now_s

    @property
    def _config(self) -> Config:
        return self._entries.config

    # -- names -------------------------------------------------------------------------------------------------

    def model(self, name: str) -> Model:
        """The model of that id or alias, pins left aside. Raises `UnknownModelError`, which lists close names."""
        virtual = self._virtual(name)
        if virtual is not None:
            raise UnknownModelError(
                f"{name[:200]!r} is a virtual model; name one of its targets: {', '.join(virtual.targets)}",
                param="model",
            )
        self._refuse_disabled(name)
        return catalog.resolve(self._entries.by_id, name, tuple(self._config.virtual))

    def route(self, name: str) -> Route:
        """Where requests for a name go. Raises `UnknownModelError`, and `ModelDisabledError` with the profile."""
        meant = self._pinned(name)
        virtual = self._virtual(meant)
        if virtual is None:
            self.model(meant)
            return Route(name, (meant,))
        targets = tuple(target for target in virtual.targets if not self._is_disabled(target))
        if not targets:
            raise self._disabled(name, "disables every target of")
        return Route(name, targets, virtual)

    def _virtual(self, name: str) -> Virtual | None:
        virtual = self._config.virtual.get(name)
        if virtual is not None:
            return virtual
        return next((one for one in self._config.virtual.values() if name in one.aliases), None)

    def _pinned(self, name: str) -> str:
        """What a name means in the profile in force: a pin of the very name comes before one of its id."""
        profile = self._config.profiles.get(self._config.profile or "")
        if profile is None or not profile.pins:
            return name
        for candidate in (name, self._id_of(name)):
            if candidate in profile.pins:
                meant = profile.pins[candidate]
                if meant is None:
                    raise self._disabled(name, "disables")
                return meant
        return name

    def _id_of(self, name: str) -> str:
        virtual = self._virtual(name)
        if virtual is not None:
            return virtual.id
        models = (*self._config.models.values(), *self._config.disabled.values())
        return next((model.id for model in models if name in model.aliases), name)

    def _is_disabled(self, name: str) -> bool:
        disabled = self._config.disabled
        return name in disabled or any(name in model.aliases for model in disabled.values())

    def _refuse_disabled(self, name: str) -> None:
        profile = self._config.profiles.get(self._config.profile or "")
        if self._is_disabled(name) or (profile is not None and name in profile.disable):
            raise self._disabled(name, "disables")

    def _disabled(self, name: str, what: str) -> ModelDisabledError:
        return ModelDisabledError(
            f"the profile {self._config.profile!r} {what} model {name[:200]!r}; "
            "switch to another (PUT /swapd/v1/profiles/active, `swapd profile`) or name another model",
            param="model",
        )

    # -- targets -----------------------------------------------------------------------------------------------

    def standings(
        self, names: Sequence[str], needs: Ability | None = None, senses: tuple[tuple[Sense, str], ...] = ()
    ) -> list[Standing]:
        """Those targets that are there and can do what a request needs, in their order, as they are now.

        Raises what the first said if there are some and none can.
        """
        found: list[Standing] = []
        unable: list[SwapdError] = []
        for name in names:
            try:
                entry = self._entries.by_id[catalog.resolve(self._entries.by_id, name).id]
                catalog.require(entry, needs, senses)
            except SwapdError as error:
                unable.append(error)
                continue
            model = self._ledger.models.get(entry.model.id)
            if model is not None:
                found.append(self._standing(name, model))
        if unable and not found:
            raise unable[0]
        return found

    def _standing(self, name: str, model: LedgerModel) -> Standing:
        now_s = self._now_s()
        ready = serves(self._ledger, model)
        wait_s = newcomers_wait_s(self._ledger, model, now_s)
        guess_s = (0.0 if ready else start_s(self._ledger, model)) + (
            len(model.waiting) * usual_service_s(model) / model.spec.slots
        )
        return Standing(
            name=name,
            ready=ready,
            loading=any(worker.state in LOADING_STATES for worker in self._ledger.workers_of(model.id)),
            free=wait_s == 0.0 and not model.waiting,
            refused=hopeless(self._ledger, model, now_s) is not None,
            wait_s=wait_s,
            guess_s=guess_s if wait_s is None else wait_s,
        )

    # -- for people --------------------------------------------------------------------------------------------

    def listed(self) -> list[ListedModel]:
        """Every model and every virtual one in force that is not `unlisted`, in the file's order."""
        models = [self._listed(entry) for entry in self._entries.by_id.values() if not entry.model.unlisted]
        return models + [self._listed_virtual(one) for one in self._config.virtual.values() if not one.unlisted]

    def listed_as(self, name: str) -> ListedModel:
        """What a name stands for. Raises `UnknownModelError`."""
        virtual = self._virtual(name)
        if virtual is not None:
            return self._listed_virtual(virtual)
        return self._listed(self._entries.by_id[self.model(name).id])

    def _listed(self, entry: catalog.Entry) -> ListedModel:
        return listed_model(self._ledger, entry, self._now_s())

    def _listed_virtual(self, virtual: Virtual) -> ListedModel:
        """As the target that a plain request would be served by now; it takes what any of them takes."""
        targets = [name for name in virtual.targets if not self._is_disabled(name)]
        models = {name: self._listed(self._entries.by_id[self.model(name).id]) for name in targets}
        order = attempts(virtual.strategy, virtual.max_wait_s, self.standings(targets))
        chosen = models[order[0].name] if order else None
        modalities = dict.fromkeys(kind for model in models.values() for kind in model.input_modalities)
        return ListedModel(
            id=virtual.id,
            aliases=virtual.aliases,
            state=chosen.state if chosen is not None else "unloaded",
            n_ctx=chosen.n_ctx if chosen is not None else 0,
            input_modalities=tuple(modalities) or ("text",),
            virtual=VirtualStatus(
                strategy=virtual.strategy,
                targets=virtual.targets,
                resolves_to=chosen.id if chosen is not None else None,
            ),
        )

    def profiles(self) -> list[ProfileStatus]:
        """Every profile of the file, in its order."""
        return [
            ProfileStatus(
                name=name,
                active=name == self._config.profile,
                description=profile.description,
                disable=profile.disable,
                pins=profile.pins,
                idle_unload_s=profile.idle_unload_s,
            )
            for name, profile in self._config.profiles.items()
        ]
