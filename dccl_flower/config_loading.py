"""Read configurations: YAML files and ``key=value`` overrides, merged and typed by OmegaConf."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, cast, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dccl_flower.config import Conf, ConfError


def conf_names() -> list[str]:
    """Return the names of the configurations that come with the package."""
    files = resources.files("dccl_flower.conf").iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def load_conf(name_or_path: str, overrides: Sequence[str] = ()) -> Conf:
    """Read a configuration, apply ``key=value`` overrides and check it.

    Raises ConfError for an unknown name or key, a wrong type or a value out of range.
    """
    source = _conf_source(name_or_path)
    if bad := [text for text in overrides if "=" not in text or text.startswith("=")]:
        raise ConfError(f"override {bad[0]!r}: expected key=value")
    merged = _merge(f"conf {name_or_path!r}", OmegaConf.structured(Conf), lambda: source)
    try:
        merged = _merge("overrides", merged, partial(OmegaConf.from_dotlist, list(overrides)))
    except ConfError:  # one by one they take longer, but tell which
        for text in overrides:
            merged = _merge(text.split("=")[0], merged, partial(OmegaConf.from_dotlist, [text]))
    try:
        conf = cast(Conf, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfError(_one_line(f"conf {name_or_path!r}", error)) from error
    if conf.name == "unnamed":
        conf.name = Path(name_or_path).stem
    check_conf(conf)
    return conf


def absolute_paths(conf: Conf) -> Conf:
    """Return the configuration with paths that mean the same from any directory."""
    if conf.data.path:
        conf.data.path = str(Path(conf.data.path).expanduser().resolve())
    if conf.devices.profiles and conf.devices.profiles.endswith((".yaml", ".yml")):
        conf.devices.profiles = str(Path(conf.devices.profiles).expanduser().resolve())
    if conf.devices.store:
        conf.devices.store = str(Path(conf.devices.store).expanduser().resolve())
    return conf


def dump_conf(conf: Conf) -> str:
    """Return the resolved configuration as YAML that :func:`load_conf` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(conf))


def check_conf(conf: Conf) -> None:
    """Raise ConfError for the first value that lies out of range."""
    for key, value, low, high in _open_intervals(conf):
        if not low < value < high:
            raise ConfError(f"{key}={value}: must lie between {low} and {high}, both excluded")
    for key, value, low in _lower_bounds(conf):
        if not value >= low:
            raise ConfError(f"{key}={value}: must be at least {low}")
    for key, value in _shares(conf):
        if not 0 <= value <= 1:
            raise ConfError(f"{key}={value}: must lie between 0 and 1")
    if conf.seed >= 2**63:
        raise ConfError(f"seed={conf.seed}: must be below 2**63")
    if not 0 < conf.data.train_fraction <= 1:
        given = f"data.train_fraction={conf.data.train_fraction}"
        raise ConfError(f"{given}: must be above 0 and at most 1")
    if conf.model.shared_stem and (conf.model.co.name or conf.model.mimic.name):
        raise ConfError("model.shared_stem=true: only slices of model.base can share its stem")
    _check_combinations(conf)
    _check_devices(conf)


def _open_intervals(conf: Conf) -> list[tuple[str, float, float, float]]:
    intervals: list[tuple[str, float, float, float]] = [
        ("model.co_ratio", conf.model.co_ratio, 0, 1),
        ("data.validation", conf.data.validation, 0, 1),
        ("pretrain.lr", conf.pretrain.lr, 0, float("inf")),
        ("distil.lr", conf.distil.lr, 0, float("inf")),
        ("rounds.lr", conf.rounds.lr, 0, float("inf")),
        ("rounds.head_tuning_lr", conf.rounds.head_tuning_lr, 0, float("inf")),
        ("rounds.timeout", conf.rounds.timeout, 0, float("inf")),
        ("devices.alpha", conf.devices.alpha, 0, float("inf")),
    ]
    if conf.devices.deadline is not None:
        intervals.append(("devices.deadline", conf.devices.deadline, 0, float("inf")))
    if conf.split.by == "fraction":
        intervals.append(("split.device_fraction", conf.split.device_fraction, 0, 1))
    return intervals


def _lower_bounds(conf: Conf) -> list[tuple[str, float, int]]:
    return [
        ("rounds.max_grad_norm", conf.rounds.max_grad_norm, 0),
        ("seed", conf.seed, 0),
        ("devices.count", conf.devices.count, 1),
        ("devices.classes_per_device", conf.devices.classes_per_device, 1),
        ("devices.samples", conf.devices.samples, 1),
        ("devices.over_sampling", conf.devices.over_sampling, 1),
        ("pretrain.epochs", conf.pretrain.epochs, 1),
        ("pretrain.batch_size", conf.pretrain.batch_size, 2),
        ("distil.epochs", conf.distil.epochs, 1),
        ("distil.batch_size", conf.distil.batch_size, 2),
        ("rounds.count", conf.rounds.count, 1),
        ("rounds.local_steps", conf.rounds.local_steps, 1),
        ("rounds.cloud_batch_size", conf.rounds.cloud_batch_size, 2),
        ("rounds.device_batch_size", conf.rounds.device_batch_size, 2),
        ("rounds.head_tuning_steps", conf.rounds.head_tuning_steps, 1),
        ("exemplars", conf.exemplars, 0),
        ("runtime.devices_per_node", conf.runtime.devices_per_node, 1),
        ("runtime.workers", conf.runtime.workers, 1),
        ("runtime.threads", conf.runtime.threads, 1),
        ("runtime.server_threads", conf.runtime.server_threads, 1),
    ]


def _shares(conf: Conf) -> list[tuple[str, float]]:
    return [
        ("split.mix", conf.split.mix),
        ("rounds.cloud_weight", conf.rounds.cloud_weight),
        ("rounds.freeze_statistics_after", conf.rounds.freeze_statistics_after),
        ("rounds.statistics_step", conf.rounds.statistics_step),
        ("rounds.min_replies", conf.rounds.min_replies),
        ("rounds.momentum", conf.rounds.momentum),
        ("rounds.server_momentum", conf.rounds.server_momentum),
        ("rounds.weight_decay", conf.rounds.weight_decay),
        ("pretrain.momentum", conf.pretrain.momentum),
        ("pretrain.weight_decay", conf.pretrain.weight_decay),
    ]


def _check_combinations(conf: Conf) -> None:
    if conf.model.co_start == "mimic":
        if conf.normalisation.startswith("group"):
            given = f"normalisation={conf.normalisation}"
            raise ConfError(f"model.co_start=mimic: not with {given}, which the mimic has not")
        if conf.model.mimic.name not in (None, conf.model.co.name):
            given = f"model.mimic.name={conf.model.mimic.name}"
            raise ConfError(f"model.co_start=mimic: not with {given}, another architecture")
    if conf.rounds.scaffold and conf.rounds.cloud_weight in (0, 1):
        given = f"rounds.cloud_weight={conf.rounds.cloud_weight}"
        raise ConfError(f"rounds.scaffold=true: needs both sides; {given} leaves one out")

    shared = conf.runtime.devices_per_node
    if shared != 1 and conf.rounds.scaffold and conf.fusion == "class_wise_head":
        both = "rounds.scaffold=true and fusion=class_wise_head"
        raise ConfError(f"runtime.devices_per_node={shared}: not with both {both}")


def _check_devices(conf: Conf) -> None:
    count, per_round, nodes = conf.devices.count, conf.devices.per_round, conf.runtime.nodes
    if per_round is not None and not 1 <= per_round <= count:
        raise ConfError(f"devices.per_round={per_round}: must lie between 1 and {count} devices")
    if nodes is not None and not 1 <= nodes <= count:
        raise ConfError(f"runtime.nodes={nodes}: must lie between 1 and {count} devices")
    timing = {"deadline": conf.devices.deadline, "over_sampling": conf.devices.over_sampling}
    for key, value in timing.items():
        if conf.devices.profiles is None and value not in (None, 1):
            raise ConfError(f"devices.{key}={value}: needs devices.profiles")
    if not math.isfinite(conf.devices.over_sampling):
        given = f"devices.over_sampling={conf.devices.over_sampling}"
        raise ConfError(f"{given}: must be a finite number from 1")


def _conf_source(name_or_path: str) -> Any:
    if name_or_path in conf_names():
        text = resources.files("dccl_flower.conf").joinpath(f"{name_or_path}.yaml").read_text()
    elif name_or_path.endswith((".yaml", ".yml")):
        try:
            text = Path(name_or_path).read_text()
        except OSError as error:
            raise ConfError(f"conf {name_or_path!r}: {error.strerror}") from error
        except ValueError as error:
            raise ConfError(f"conf {name_or_path!r}: is not the path of UTF-8 text") from error
    else:
        allowed = ", ".join(conf_names())
        raise ConfError(f"conf {name_or_path!r}: expected one of {allowed}, or a path to a .yaml")
    try:
        source = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfError(_one_line(f"conf {name_or_path!r}", error)) from error
    if not isinstance(source, dict):
        raise ConfError(f"conf {name_or_path!r}: expected a mapping of keys to values")
    return source


def _merge(where: str, base: Any, layer: Callable[[], Any]) -> Any:
    """Lay one layer of values over the others; ``where`` names it should it not fit."""
    try:
        values = OmegaConf.create(layer())
        _check_sections(Conf, values)
        return OmegaConf.merge(base, values)
    except (OmegaConfBaseException, yaml.YAMLError, TypeError) as error:
        raise ConfError(_one_line(where, error)) from error


def _check_sections(kind: Any, layer: Any, prefix: str = "") -> None:
    """Raise ConfError where a plain value stands in the place of a section."""
    for section in fields(kind):
        child = get_type_hints(kind)[section.name]
        if section.name not in layer or not is_dataclass(child):
            continue
        value = layer[section.name]
        if not isinstance(value, DictConfig):
            keys = ", ".join(f.name for f in fields(child))
            raise ConfError(f"{prefix}{section.name}={value}: is a section with keys {keys}")
        _check_sections(child, value, f"{prefix}{section.name}.")


def _one_line(where: str, error: Exception) -> str:
    text = " ".join(str(error).split("\n    full_key")[0].split())
    key = getattr(error, "full_key", None)
    if key and text.startswith("Key "):
        parent = getattr(error, "parent_node", None)
        allowed = ", ".join(sorted(parent)) if parent is not None else ""
        return f"{key}: unknown key; allowed here: {allowed}"
    return f"{key or where}: {text}"
