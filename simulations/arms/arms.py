"""``dccl arms``: every arm of the paper on the same data, steps and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dccl_flower.config import ArmsConf, Conf, ConfError
from dccl_flower.config_loading import dump_conf, load_conf
from dccl_flower.files import content_key
from dccl_flower.simulations.jobs import Job, make_job
from dccl_flower.simulations.prepared import ALL_CODE, code_digest


@dataclass(frozen=True)
class Arm:
    """One row of the comparison: how it is trained, and what it changes in the configuration.

    ``variant`` names a list of ``arms`` in the configuration. Kinds: ``prepared`` is ready once
    the cloud is, ``base`` trains the uncut model, ``central`` the co-submodel on pooled data,
    ``federated`` runs through Flower.
    """

    title: str
    kind: str
    variant: str = ""
    overrides: tuple[str, ...] = ()


CENTRAL_M, CLOUD_SUBMODEL = "central-m", "cloud-submodel"
HEADLINES = ("published", "strict", "exemplars")
RUN_ARM = "dccl_flower.simulations.arms.job:run_arm"

ARMS = {
    CLOUD_SUBMODEL: Arm("cloud submodel", "prepared"),
    "mimic": Arm("mimic alone", "prepared"),
    "cloud-b": Arm("Cloud-B: base model, cloud data", "base"),
    "central-b": Arm("Central-B: base model, pooled data", "base"),
    "central-d": Arm(
        "Central-D: co, pooled data, true logits", "central", "central", ("control=cloud_submodel",)
    ),
    CENTRAL_M: Arm("Central-M: co, pooled data, mimic's logits", "central", "central"),
    "distr-d": Arm(
        "Distr-D: published rule, true logits",
        "federated",
        "published",
        ("control=cloud_submodel",),
    ),
    "no-control": Arm(
        "no control: published rule, co alone", "federated", "published", ("control=none",)
    ),
    "published": Arm("DC-CCL as published", "federated", "published"),
    "strict": Arm("DC-CCL at its best, strict", "federated", "strict"),
    "exemplars": Arm("DC-CCL at its best, with exemplars", "federated", "exemplars"),
}


def parse_arms(text: str | None) -> list[str]:
    """Return the arms named in a comma-separated list, all where there is none.

    Raises ConfError for an unknown one.
    """
    names = list(ARMS) if text is None else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in ARMS:
            raise ConfError(f"--arms {name!r}: unknown arm; allowed are {', '.join(ARMS)}")
    return list(dict.fromkeys(names))


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of a comma-separated list. Raises ConfError for one that is none."""
    seeds = []
    for part in text.split(","):
        if not part.strip().isdecimal():
            raise ConfError(f"--seeds {part.strip()!r}: expected integers from 0 up, as in 0,1,2")
        seeds.append(int(part))
    return list(dict.fromkeys(seeds))


def arm_conf(name: str, conf_name: str, overrides: Sequence[str], seed: int) -> Conf:
    """Return the configuration of one arm and seed. Raises ConfError where it is impossible."""
    arm = ARMS[name]
    given = [*overrides, f"seed={seed}", "runtime.reuse=true"]
    variant = getattr(load_conf(conf_name, given).arms, arm.variant) if arm.variant else []
    conf = load_conf(conf_name, [*given, *variant, *arm.overrides])
    if name == "exemplars" and conf.exemplars == 0:
        raise ConfError("arm exemplars: arms.exemplars must set exemplars above 0")
    if name == "strict" and conf.exemplars > 0:
        raise ConfError(f"arm strict: exemplars={conf.exemplars}: must be 0")
    return conf


def arm_jobs(
    conf_name: str, overrides: Sequence[str], arms: Sequence[str], seeds: Sequence[int], root: Path
) -> dict[tuple[str, int], Job]:
    """Write every arm's configuration below ``root`` and return the jobs, shared work first.

    Raises ConfError where an arm is impossible, or takes more steps than a central one does.
    """
    in_order = sorted(arms, key=list(ARMS).index)
    shared = [(name, seed) for name in in_order for seed in seeds if ARMS[name].kind == "prepared"]
    others = [(name, seed) for seed in seeds for name in in_order if ARMS[name].kind != "prepared"]
    confs = {
        (name, seed): arm_conf(name, conf_name, overrides, seed) for name, seed in shared + others
    }
    _check_steps(confs)
    return {
        (name, seed): _job(name, seed, conf, root / "jobs") for (name, seed), conf in confs.items()
    }


def co_steps(conf: Conf) -> int:
    """Return how many steps each side trains the co-submodel."""
    return conf.rounds.count * conf.rounds.local_steps


def _job(name: str, seed: int, conf: Conf, root: Path) -> Job:
    text = dump_conf(replace(conf, arms=ArmsConf()))  # one arm's changes are not another's
    key = content_key(code_digest(*ALL_CODE), name, text)
    folder = root / f"{name}-seed{seed}-{key}"
    facts = {"arm": name, "kind": ARMS[name].kind}
    return make_job(f"{name}, seed {seed}", folder, key, text, RUN_ARM, **facts)


def _check_steps(confs: dict[tuple[str, int], Conf]) -> None:
    central = [co_steps(c) for (name, _), c in confs.items() if ARMS[name].kind == "central"]
    for (name, _), conf in confs.items():
        if central and ARMS[name].kind == "federated" and co_steps(conf) > min(central):
            raise ConfError(
                f"arm {name}: {co_steps(conf)} steps are more than the {min(central)} of the "
                "central arms; set rounds.count or rounds.local_steps in arms.central"
            )
