import pytest
from refusals import refusal

from dccl_flower.config_loading import load_conf, with_overrides


@pytest.mark.parametrize("value", ["0.0", "1.0", "1.5", "-0.1", "nan", "inf"])
@pytest.mark.parametrize("key", ["model.co_ratio", "data.validation"])
def test_ratios_lie_strictly_between_0_and_1(key, value):
    assert refusal(f"{key}={value}") == (
        f"{key}={float(value)}: must lie between 0 and 1, both excluded"
    )


@pytest.mark.parametrize("value", ["0.0", "1.0"])
def test_device_fraction_counts_only_in_a_split_by_fraction(value):
    override = f"split.device_fraction={value}"
    assert load_conf("digits", [override]).split.device_fraction == float(value)
    message = refusal(override, "split.by=fraction")
    assert message == f"{override}: must lie between 0 and 1, both excluded"


@pytest.mark.parametrize("value", ["0.0", "-1.0", "inf", "nan"])
@pytest.mark.parametrize(
    "key",
    [
        "pretrain.lr",
        "distil.lr",
        "rounds.lr",
        "rounds.head_tuning_lr",
        "rounds.timeout",
        "devices.alpha",
        "devices.deadline",
    ],
)
def test_rates_are_positive_and_finite(key, value):
    message = refusal(f"{key}={value}")
    assert message == f"{key}={float(value)}: must be above 0 and finite"


@pytest.mark.parametrize("value", ["0.0", "1.1", "-0.5", "nan"])
def test_train_fraction_out_of_range_is_refused(value):
    assert refusal(f"data.train_fraction={value}").startswith(f"data.train_fraction={value}: ")


@pytest.mark.parametrize("value", [0.001, 1.0])
def test_train_fraction_may_be_all(value):
    assert load_conf("digits", [f"data.train_fraction={value}"]).data.train_fraction == value


@pytest.mark.parametrize(
    ("key", "low"),
    [
        ("seed", 0),
        ("devices.count", 1),
        ("devices.classes_per_device", 1),
        ("devices.samples", 1),
        ("runtime.devices_per_node", 1),
        ("pretrain.epochs", 1),
        ("pretrain.batch_size", 2),
        ("distil.epochs", 1),
        ("distil.batch_size", 2),
        ("rounds.count", 1),
        ("rounds.local_steps", 1),
        ("rounds.cloud_batch_size", 2),
        ("rounds.device_batch_size", 2),
        ("rounds.head_tuning_steps", 1),
        ("exemplars", 0),
        ("runtime.workers", 1),
        ("runtime.threads", 1),
        ("runtime.server_threads", 1),
    ],
)
def test_counts_have_a_least_value(key, low):
    load_conf("digits", [f"{key}={low}"])
    assert refusal(f"{key}={low - 1}") == f"{key}={low - 1}: must be at least {low}"


@pytest.mark.parametrize(
    "key",
    [
        "split.mix",
        "devices.heterogeneity",
        "rounds.cloud_weight",
        "rounds.freeze_statistics_after",
        "rounds.min_replies",
        "rounds.momentum",
        "rounds.server_momentum",
        "rounds.weight_decay",
        "pretrain.momentum",
        "pretrain.weight_decay",
    ],
)
def test_shares_lie_between_0_and_1_with_both_ends(key):
    load_conf("digits", [f"{key}=0"])
    load_conf("digits", [f"{key}=1"])
    for value in ("-0.01", "1.01", "nan"):
        assert refusal(f"{key}={value}") == f"{key}={value}: must lie between 0 and 1"


@pytest.mark.parametrize("key", ["devices.per_round", "runtime.nodes"])
def test_part_of_the_devices_is_at_most_all_of_them(key):
    conf = load_conf("digits", ["devices.count=4", f"{key}=4"])
    assert with_overrides(conf, []) == conf
    for value in (0, 5):
        message = refusal("devices.count=4", f"{key}={value}")
        assert message == f"{key}={value}: must lie between 1 and 4 devices"


@pytest.mark.parametrize("value", ["-0.5", "nan", "inf"])
def test_a_gradient_norm_to_clip_at_is_not_negative(value):
    load_conf("digits", ["rounds.max_grad_norm=0"])
    message = refusal(f"rounds.max_grad_norm={value}")
    assert message == f"rounds.max_grad_norm={value}: must be at least 0 and finite"


def test_a_seed_fits_into_63_bits():
    assert load_conf("digits", [f"seed={2**63 - 1}"]).seed == 2**63 - 1
    assert refusal(f"seed={2**63}") == f"seed={2**63}: must be below 2**63"


@pytest.mark.parametrize("key", ["co", "mimic"])
def test_a_stem_is_shared_by_slices_only(key):
    message = refusal("model.shared_stem=true", f"model.{key}.name=timm/resnet18")
    assert message == "model.shared_stem=true: only slices of model.base can share its stem"


@pytest.mark.parametrize("norm", ["group", "group_ws"])
def test_the_mimic_s_batch_norms_cannot_start_group_norms(norm):
    load_conf("digits", ["model.co_start=mimic", "normalisation=batch_fused"])
    message = refusal("model.co_start=mimic", f"normalisation={norm}")
    assert (
        message == f"model.co_start=mimic: not with normalisation={norm}, which the mimic has not"
    )


def test_a_mimic_of_another_architecture_cannot_start_the_co_submodel():
    message = refusal("model.co_start=mimic", "model.mimic.name=small_cnn")
    assert (
        message == "model.co_start=mimic: not with model.mimic.name=small_cnn, another architecture"
    )
    load_conf(
        "digits",
        ["model.co_start=mimic", "model.mimic.name=small_cnn", "model.co.name=small_cnn"],
    )


@pytest.mark.parametrize("weight", ["0.0", "1.0"])
def test_scaffold_needs_both_sides(weight):
    message = refusal("rounds.scaffold=true", f"rounds.cloud_weight={weight}")
    assert message == (
        f"rounds.scaffold=true: needs both sides; rounds.cloud_weight={weight} leaves one out"
    )


@pytest.mark.parametrize("override", ["devices.deadline=3.0", "devices.over_sampling=1.3"])
def test_a_virtual_clock_needs_device_profiles(override):
    assert refusal(override) == f"{override}: needs devices.profiles"
    load_conf("digits", [override, "devices.profiles=phones"])


@pytest.mark.parametrize("partitioner", ["natural", "draws"])
def test_what_is_no_partition_by_labels_cannot_be_mixed(partitioner):
    override = f"devices.partitioner={partitioner}"
    assert refusal(override, "devices.heterogeneity=0.5") == (
        f"devices.heterogeneity=0.5: must be 1 with {override}"
    )
    load_conf("digits", [override, "devices.heterogeneity=1"])


@pytest.mark.parametrize("value", ["inf", "nan", "0.9"])
def test_over_sampling_is_finite_and_at_least_one(value):
    assert refusal(f"devices.over_sampling={value}", "devices.profiles=phones").startswith(
        f"devices.over_sampling={value}: must be"
    )


def test_an_unknown_codec_is_refused():
    message = refusal("wire.codec=zip")
    assert message.startswith("wire.codec")
    assert "zip" in message
    assert "int8" in message


def test_shared_messages_do_not_go_with_scaffold_and_a_class_wise_head():
    together = ["rounds.scaffold=true", "fusion=class_wise_head"]
    message = refusal("runtime.devices_per_node=2", *together)
    assert message.startswith("runtime.devices_per_node=2: not with both rounds.scaffold=true")
    for one in together:
        load_conf("digits", ["runtime.devices_per_node=2", one])
