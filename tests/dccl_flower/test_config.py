from dataclasses import fields, is_dataclass
from importlib import resources

import pytest
from refusals import refusal

from dccl_flower.config import ConfError
from dccl_flower.config_loading import conf_names, dump_conf, load_conf, with_overrides
from dccl_flower.image_config import ImageConf
from dccl_flower.strategies.dc_ccl.conf import DcCclConf
from dccl_flower.typed_yaml import hints

SECTIONS = [each.name for each in fields(DcCclConf) if is_dataclass(hints(DcCclConf)[each.name])]


def write_yaml(folder, text, name="mine.yaml"):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_digits_comes_with_the_package():
    assert "digits" in conf_names()
    assert conf_names() == sorted(conf_names())


@pytest.mark.parametrize("name", conf_names())
def test_every_packaged_conf_loads_under_its_own_name(name):
    assert load_conf(name).name == name


@pytest.mark.parametrize("name", conf_names())
def test_every_packaged_conf_opens_with_the_command_that_runs_it(name):
    text = resources.files("dccl_flower.conf").joinpath(f"{name}.yaml").read_text()
    opening = text.splitlines()[0]
    command = "# dccl scale" if name == "scale" else f"# dccl run {name}"
    assert opening == command or opening.startswith(
        (f"{command} data.path=", f"# dccl arms {name} ")
    )


def test_what_a_conf_leaves_out_keeps_its_default(tmp_path):
    assert load_conf(write_yaml(tmp_path, "")) == DcCclConf(name="mine")
    expected = DcCclConf(name="mine", seed=3)
    expected.rounds.count = 4
    assert load_conf(write_yaml(tmp_path, "seed: 3\nrounds:\n  count: 4\n")) == expected


def test_a_name_in_the_file_wins_over_the_file_name(tmp_path):
    assert load_conf(write_yaml(tmp_path, "name: other\n")).name == "other"


def test_yaml_numbers_without_a_point_are_floats_where_floats_belong(tmp_path):
    conf = load_conf(write_yaml(tmp_path, "pretrain:\n  lr: 1e-3\nrounds:\n  lr: 1\n"))
    assert (conf.pretrain.lr, conf.rounds.lr) == (0.001, 1.0)


def test_overrides_win_over_the_file_and_later_ones_over_earlier_ones():
    overrides = ["seed=1", "target_gain=null", "split.cloud_classes=[1,2]", "seed=2"]
    conf = load_conf("digits", overrides)
    assert (conf.seed, conf.target_gain, conf.split.cloud_classes) == (2, None, [1, 2])
    assert conf.split.device_classes == load_conf("digits").split.device_classes


def test_an_override_of_a_nested_backbone_leaves_its_neighbours():
    conf = load_conf("digits", ["model.co.name=timm/resnet18"])
    assert (conf.model.co.name, conf.model.co.pretrained) == ("timm/resnet18", False)
    assert conf.model.mimic.name is None


def test_the_value_of_an_override_may_hold_an_equals_sign():
    assert load_conf("digits", ["data.path=/images/size=8"]).data.path == "/images/size=8"


def test_overrides_do_not_leak_into_the_next_conf():
    before = load_conf("digits")
    load_conf("digits", ["split.cloud_classes=[5]", "seed=7"])
    assert load_conf("digits") == before


def test_unknown_name_is_refused_with_the_known_ones():
    message = refusal(conf="nosuch")
    assert "'nosuch'" in message
    assert all(name in message for name in conf_names())
    assert ".yaml" in message


def test_missing_file_is_refused_with_its_path(tmp_path):
    path = str(tmp_path / "absent.yaml")
    assert path in refusal(conf=path)
    assert "No such file" in refusal(conf=path)


@pytest.mark.parametrize("text", ["- 1\n", "3\n"])
def test_a_file_without_keys_is_refused(tmp_path, text):
    path = write_yaml(tmp_path, text)
    assert refusal(conf=path) == f"conf {path!r}: expected a mapping of keys to values"


@pytest.mark.parametrize("text", ["a: [1\n", "a: b: c\n", "\tseed: 1\n", "seed: !!python/x 1\n"])
def test_broken_yaml_is_refused_in_one_line_that_names_the_file(tmp_path, text):
    path = write_yaml(tmp_path, text)
    assert refusal(conf=path).startswith(f"conf {path!r}: ")


@pytest.mark.parametrize("text", ["runtime.gpu", "=3", ""])
def test_an_override_without_key_or_value_is_refused(text):
    assert refusal(text) == f"override {text!r}: expected key=value"


@pytest.mark.parametrize(
    ("override", "key", "allowed"),
    [
        ("foo=1", "foo", "here: arms, control, data, devices, distil, exemplar_choice, exem"),
        (
            "data.foo=1",
            "data.foo",
            "image_column, image_size, label_column, name, normalise, path, rgb",
        ),
        ("model.co.foo=1", "model.co.foo", "allowed here: name, pretrained"),
        ("rounds={foo: 1}", "rounds.foo", "cloud_weight, count"),
    ],
)
def test_unknown_key_is_refused_with_the_keys_beside_it(override, key, allowed):
    message = refusal(override)
    assert message.startswith(f"{key}: unknown key; ")
    assert allowed in message


def test_unknown_key_in_a_file_is_refused_too(tmp_path):
    path = write_yaml(tmp_path, "devices:\n  number: 3\n")
    assert refusal(conf=path).startswith("devices.number: unknown key; allowed here: alpha, ")


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("seed=abc", "an integer"),
        ("seed=1.5", "an integer"),
        ("seed=0x10", "an integer"),
        ("seed=true", "an integer"),
        ("seed=null", "an integer"),
        (f"seed={'9' * 5000}", "an integer"),
        ("seed.x=3", "nothing (method.name=dc_ccl)"),
        ("model.co_ratio=wide", "a number"),
        ("data.rgb=maybe", "true or false"),
        ("data.name= ", "text"),
        ("devices.per_round=x", "an integer"),
        ("split.cloud_classes=3", "a list, as in [a, b]"),
        ("split.by=colour", "one of classes, fraction"),
        ("data.augment=mixup", "one of none, flip_crop"),
        ("devices.partitioner=even", "one of iid, dirichlet, pathological, natural, draws"),
        (
            "normalisation=layer",
            "one of batch, batch_frozen, batch_fused, batch_mixed, group, group_ws",
        ),
        ("control=teacher", "one of mimic, cloud_submodel, none"),
        ("model.co_start=zero", "one of base, mimic"),
        ("fusion=median", "one of average, class_wise_head"),
        ("exemplar_choice=best", "one of random, herded"),
        ("rounds.scaffold=maybe", "true or false"),
        ("rounds.server_momentum=much", "a number"),
        ("loss=mse", "one of ce, prior_corrected"),
        ("rounds.lr_schedule=step", "one of last_two_halved, constant, cosine"),
    ],
)
def test_wrong_type_is_refused_with_key_value_and_what_is_allowed(override, allowed):
    message = refusal(override)
    assert message.startswith((f"{override[:60]}", f"{override.split('=')[0]}: unknown key"))
    assert message.endswith((f": must be {allowed}", f"here: {allowed}"))
    assert len(message) < 250


def test_an_item_of_a_list_is_named_by_its_place():
    message = refusal("arms.changes={a: [rounds.lr=1, [b]]}")
    assert message == "arms.changes.a[1]=[b]: must be text"


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_cannot_be_null(section):
    assert section in refusal(f"{section}=null")


def test_a_section_cannot_be_a_number():
    assert refusal("data=3").startswith("data=3: ")


def test_an_override_of_one_item_of_a_list_is_refused():
    assert "split.cloud_classes" in refusal("split.cloud_classes[0]=3")


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\xff")
    assert str(path) in refusal(conf=str(path))


def test_a_conf_made_in_python_is_looked_at_too():
    conf = DcCclConf()
    assert with_overrides(conf, []) == conf
    conf.model.co_ratio = 1.5
    with pytest.raises(ConfError, match=r"model\.co_ratio=1\.5"):
        with_overrides(conf, [])


@pytest.mark.parametrize("name", conf_names())
def test_a_dumped_conf_loads_back_equal(tmp_path, name):
    is_of_images = isinstance(load_conf(name), ImageConf)
    model = "model.base=timm/resnet18" if is_of_images else "model.hidden=[7, 5]"
    conf = load_conf(name, ["seed=5", "rounds.timeout=7", model])
    assert load_conf(write_yaml(tmp_path, dump_conf(conf))) == conf


@pytest.mark.parametrize("name", ["12", "1e5", "null", "on", "a: b", "# x", "'q'", "größe", " x "])
def test_a_dumped_name_is_read_back_as_the_same_text(tmp_path, name):
    path = write_yaml(tmp_path, dump_conf(DcCclConf(name=name)))
    assert load_conf(path).name == name


def test_a_dumped_conf_spells_out_the_defaults(tmp_path):
    text = dump_conf(load_conf(write_yaml(tmp_path, "")))
    assert "  co_ratio: 0.125\n" in text
    assert "  per_round: null\n" in text


def test_paths_mean_the_same_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    path = write_yaml(tmp_path, "data: {path: data}\ndevices: {store: ~/store}\n")
    conf = load_conf(path, ["devices.profiles=./fleet.yml"])
    assert conf.data.path == str(tmp_path / "data")
    assert conf.devices.store == "/home/me/store"
    assert conf.devices.profiles == str(tmp_path / "fleet.yml")
    assert load_conf("digits", ["devices.profiles=phones"]).devices.profiles == "phones"
    assert load_conf("digits", ["data.path="]).data.path is None


def test_the_published_rule_is_what_a_conf_says_nothing_about(tmp_path):
    conf = load_conf(write_yaml(tmp_path, ""))
    assert (conf.control, conf.fusion, conf.exemplar_choice) == ("mimic", "average", "random")
    assert (conf.rounds.keep_momentum, conf.rounds.scaffold) == (False, False)
    assert conf.rounds.server_momentum == 0.0
    assert (conf.pretrain.mask_unseen, conf.distil.mixup) == (False, False)
    assert (conf.runtime.mixed_precision, conf.runtime.channels_last) == (False, False)
    assert conf.runtime.reuse is False


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("control", ["mimic", "cloud_submodel", "none"]),
        (
            "normalisation",
            ["batch", "batch_frozen", "batch_fused", "batch_mixed", "group", "group_ws"],
        ),
        ("fusion", ["average", "class_wise_head"]),
        ("exemplar_choice", ["random", "herded"]),
    ],
)
def test_every_word_that_a_key_allows_is_taken(key, values):
    assert [getattr(load_conf("digits", [f"{key}={value}"]), key) for value in values] == values


def test_what_an_arm_changes_is_a_list_of_overrides(tmp_path):
    given = ["arms.changes.strict=[fusion=class_wise_head,rounds.scaffold=true]"]
    conf = load_conf(write_yaml(tmp_path, ""), given)
    assert conf.arms.changes["strict"] == ["fusion=class_wise_head", "rounds.scaffold=true"]
    assert conf.arms.rows == "dc_ccl"


def test_weights_of_a_slice_or_of_two_origins_are_refused():
    told = "needs model.co.name; a slice has the weights of model.base"
    file = "weights=/a.safetensors"
    assert refusal(f"model.co.{file}") == f"model.co.{file}: {told}"
    with pytest.raises(ConfError, match=f"^model.pretrained=true: not with model.{file}"):
        load_conf("digits", [f"model.{file}", "model.pretrained=true"])
