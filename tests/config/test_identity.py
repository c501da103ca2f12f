from __future__ import annotations

from swapd.config.identity import identify
from swapd.config.load import load


def test_identity_follows_links_and_is_none_without_a_file(tmp_path):
    path, link = tmp_path / "c.yaml", tmp_path / "link"
    path.write_text("models: {}\n")
    link.symlink_to(path)
    assert identify(link) == identify(path) is not None
    assert identify(tmp_path / "none") is None


def test_a_loaded_configuration_carries_the_identity_of_what_was_read(tmp_path, backends):
    path = tmp_path / "c.yaml"
    path.write_text("models: {}\n")
    config = load(path, backends)
    assert config.identity == identify(path)
    path.write_text("models: {} # edited\n")
    assert config.identity != identify(path)
