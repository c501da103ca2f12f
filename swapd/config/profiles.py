"""What a configuration is while one of its profiles is in force, and with what people have pinned since.

Pure. A profile's models are left out as if the file did not have them, so that switching is a reload like any other.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from swapd.config.schema import Config, Model


def in_profile(config: Config, name: str | None) -> Config:
    """The configuration of a file with a profile of it in force; None, or one that it does not have, for no profile."""
    profile = config.profiles.get(name) if name is not None else None
    if profile is None:
        return config

    def kept(model: Model) -> Model:
        if profile.idle_unload_s is None:
            return model
        return msgspec.structs.replace(model, idle_unload_s=profile.idle_unload_s)

    return msgspec.structs.replace(
        config,
        profile=name,
        models={key: kept(model) for key, model in config.models.items() if key not in profile.disable},
        virtual={key: virtual for key, virtual in config.virtual.items() if key not in profile.disable},
        disabled={key: model for key, model in config.models.items() if key in profile.disable},
    )


def with_pins(config: Config, pins: Mapping[str, bool]) -> Config:
    """The configuration with these models pinned, or not, whatever it says itself. Others in `pins` count not."""
    if not pins:
        return config
    models = {key: msgspec.structs.replace(model, pin=pins.get(key, model.pin)) for key, model in config.models.items()}
    return msgspec.structs.replace(config, models=models)
