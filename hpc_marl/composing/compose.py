"""From overrides to an `ExperimentConfig`: Hydra composes, the dataclasses check, mistakes are answered.

    conf/*.yaml (choices) + dataclass defaults + overrides --Hydra--> plain values --build--> ExperimentConfig

The dataclasses' defaults enter Hydra as the node `experiment_defaults`, so every setting can be overridden
without '+' and `--cfg job` shows all of them, while YAML files need to hold nothing but choices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from hpc_marl.composing.conf_files import PRIMARY_CONFIG, conf_directory
from hpc_marl.composing.overrides import check_overrides, mapping_paths, without_sweeps
from hpc_marl.config import ExperimentConfig, build, to_dict
from hpc_marl.errors import ConfigError

VERSION_BASE = "1.3"


@cache
def register_defaults() -> None:
    """Give Hydra the dataclasses' defaults, once for this process, under the name `experiment_defaults`."""
    node = OmegaConf.create(to_dict(ExperimentConfig()))
    for path in mapping_paths():
        # Mappings, such as the arguments of what makes an environment, hold the user's own keys: those of the
        # default must not be merged into another's, and any key may be set without '+'.
        OmegaConf.update(node, path, {}, merge=False)
        OmegaConf.set_struct(OmegaConf.select(node, path), False)
    ConfigStore.instance().store(name="experiment_defaults", node=node, provider="hpc_marl")


def compose_experiment(
    overrides: Sequence[str] = (),
    config_dir: str | Path | None = None,
    config_name: str = PRIMARY_CONFIG,
    sweep: bool = False,
) -> ExperimentConfig:
    """Compose and check one experiment.

    Args:
        overrides: Hydra overrides such as `algorithm=ippo` or `seed=3`.
        config_dir: a directory of the user's own YAML files, laid out like conf/.
        config_name: the primary config.
        sweep: allow overrides such as `seed=1,2`; all values are checked, the first ones make the result.

    Raises:
        ConfigError: a key or value is wrong; the message holds what would be right.
    """
    with hydra_search_path(config_dir) as loader, translated_errors():
        jobs = without_sweeps(list(overrides), loader) if sweep else [list(overrides)]
        mistakes = check_overrides([override for job in jobs for override in job], loader)
        if mistakes:
            raise ConfigError("\n".join(mistakes))
        experiments = [experiment_from(compose(config_name, overrides=job)) for job in jobs]
    return experiments[0]


def experiment_from(composed: DictConfig) -> ExperimentConfig:
    """Resolve and check what Hydra composed.

    Raises:
        ConfigError: a key or value is wrong.
    """
    with translated_errors():
        values: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    return build(ExperimentConfig, values)


@contextmanager
def hydra_search_path(config_dir: str | Path | None = None) -> Iterator[ConfigLoader]:
    """Set Hydra up with our conf/ and the user's directory; afterwards Hydra is as it was."""
    register_defaults()
    version.setbase(VERSION_BASE)
    search_path = create_config_search_path(str(conf_directory()))
    if config_dir is not None:
        directory = Path(config_dir).absolute()
        if not directory.is_dir():
            raise ConfigError(f"--config-dir {config_dir}: no such directory")
        search_path.prepend("command-line", f"file://{directory}", anchor=SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    Hydra.create_main_hydra2("hpc_marl", search_path)
    try:
        yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().clear()


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn what Hydra, OmegaConf and YAML raise into a ConfigError that says the same in fewer lines."""
    try:
        yield
    except OmegaConfBaseException as error:
        message = str(error).splitlines()[0]
        raise ConfigError(f"{error.full_key}: {message}" if error.full_key else message) from error
    except (HydraException, YAMLError) as error:
        text = str(error).split("\nConfig search path:")[0].split("\nSee https://hydra.cc")[0].strip()
        raise ConfigError(text.replace("\t", "  ")) from error
