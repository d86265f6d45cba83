"""Options of hydra/launcher and hydra/sweeper, registered with Hydra."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.plugins.search_path_plugin import SearchPathPlugin

from hydra_plugins.slm_study._settings import (
    LocalSettings,
    RaySettings,
    SlurmSettings,
    SweeperSettings,
)


class StudyOptions(SearchPathPlugin):
    """Hook that registers the options.

    Hydra calls it after it has imported all plugins, so that `ray` replaces the option of hydra-ray-launcher
    where that is installed. The options are no files in conf/, because Hydra would take another plugin's
    option of the same name for the schema of the file.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        launchers = {"local": LocalSettings, "ray": RaySettings, "slurm": SlurmSettings}
        store = ConfigStore.instance()
        for name, settings in launchers.items():
            store.store(group="hydra/launcher", name=name, node=settings, provider="slm")
        store.store(group="hydra/sweeper", name="study", node=SweeperSettings, provider="slm")
