"""The method chooses the sections: what a file says for another method is nobody's mistake."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from refusals import refusal

from dccl_flower import config_loading
from dccl_flower.config import MethodConf, bound, section
from dccl_flower.config_loading import dump_conf, load_conf
from dccl_flower.image_config import CutModelConf, ImageConf
from dccl_flower.method import MethodKind, find_method
from dccl_flower.strategies.dc_ccl.conf import DcCclConf


@dataclass
class OtherMethodConf(MethodConf):
    """A method with a key of its own."""

    name: str = "other"
    temperature: float = bound(1.0, above=0)


@dataclass
class OtherConf(ImageConf):
    """A method that cuts its model and has no mimic."""

    method: OtherMethodConf = section(OtherMethodConf)
    model: CutModelConf = section(CutModelConf)


@pytest.fixture(autouse=True)
def _other_method(monkeypatch):
    kinds = {"other": OtherConf, "plain": ImageConf}

    def find(name):
        kind = kinds.get(name)
        return MethodKind(kind, None, None, None, None) if kind else find_method(name)

    monkeypatch.setattr(config_loading, "find_method", find)


def write(folder, text):
    file = folder / "mine.yaml"
    file.write_text(text)
    return str(file)


def test_dc_ccl_is_the_method_that_nobody_names():
    conf = load_conf("digits")
    assert type(conf) is DcCclConf
    assert conf.method.name == "dc_ccl"
    assert load_conf("digits", ["method.name=dc_ccl"]) == conf


@pytest.mark.parametrize("override", ["method.name=other", "method={name: other}"])
def test_another_method_takes_of_a_file_what_it_knows(override):
    conf, whole = load_conf("digits", [override]), load_conf("digits")
    assert type(conf) is OtherConf
    assert (conf.name, conf.method.name) == ("digits", "other")
    assert (conf.data, conf.split, conf.target_gain) == (whole.data, whole.split, 0.15)
    assert (conf.rounds.count, conf.rounds.lr, conf.model.base) == (15, 0.1, "small_cnn")
    assert not hasattr(conf, "distil")
    assert not hasattr(conf.rounds, "cloud_weight")


def test_keys_deep_in_a_section_are_left_out_too(tmp_path):
    file = write(tmp_path, "rounds: {cloud_weight: 9, lr: 1}\nmodel: {co_ratio: 0.5, co_start: x}")
    conf = load_conf(file, ["method.name=other"])
    assert (conf.rounds.lr, conf.model.co_ratio) == (1.0, 0.5)


def test_the_last_override_of_the_method_wins():
    conf = load_conf("digits", ["method.name=plain", "method.name=other"])
    assert (type(conf), conf.method.name) == (OtherConf, "other")
    conf = load_conf("digits", ["method.name=other", "method={name: plain}"])
    assert (type(conf), conf.method.name) == (ImageConf, "plain")


def test_the_file_names_the_method_and_its_keys(tmp_path):
    file = write(tmp_path, "method: {name: other, temperature: 3}\n")
    assert load_conf(file).method == OtherMethodConf("other", 3.0)
    assert load_conf(file, ["method.name=dc_ccl"]).method == MethodConf("dc_ccl")
    assert load_conf(file, ["method.temperature=2"]).method.temperature == 2


@pytest.mark.parametrize(
    ("text", "key"),
    [("distil: {lr: 1}", "distil"), ("rounds: {scaffold: true}", "rounds.scaffold")],
)
def test_a_file_of_a_method_s_own_may_not_hold_another_s_keys(tmp_path, text, key):
    file = write(tmp_path, f"method: {{name: other}}\n{text}\n")
    message = refusal(conf=file)
    assert message.startswith(f"{key}: unknown key; allowed here: ")
    assert message.endswith("(method.name=other)")


def test_what_neither_method_knows_is_refused(tmp_path):
    message = refusal("method.name=other", conf=write(tmp_path, "distill: {lr: 1}\n"))
    assert message.startswith(
        "distill: unknown key; allowed here: arms, data, devices, method, model"
    )
    message = refusal("method.name=other", conf=write(tmp_path, "rounds: {cloud_wait: 1}\n"))
    assert message.startswith("rounds.cloud_wait: unknown key; allowed here: count, device_batch")


@pytest.mark.parametrize(
    ("override", "key", "allowed"),
    [
        ("distil.lr=0.1", "distil.lr", "arms, data, devices, method, model, name, privacy, rounds"),
        ("loss=ce", "loss", "arms, data, devices, method"),
        ("model.mimic.name=x", "model.mimic.name", "base, co, co_ratio, pretrained, shared_stem"),
        ("rounds={cloud_weight: 1}", "rounds.cloud_weight", "count, device_batch_size"),
    ],
)
def test_an_override_that_the_method_does_not_know_is_refused(override, key, allowed):
    message = refusal(override, "method.name=other")
    assert message.startswith(f"{key}: unknown key; allowed here: {allowed}")
    assert message.endswith("(method.name=other)")


@pytest.mark.parametrize("override", ["method.name=nosuch", "method.name=", "method.name=a b"])
def test_an_unknown_method_is_refused_with_the_known_ones(override):
    message = refusal(override)
    assert message.startswith(f"{override}: unknown method; known are ")
    assert "dc_ccl" in message


@pytest.mark.parametrize("text", ["method: other", "method:", "method: [other]"])
def test_the_method_is_a_section(tmp_path, text):
    assert "must have the keys name" in refusal(conf=write(tmp_path, text))
    assert "must have the keys name" in refusal(text.replace(":", "=").replace("= ", "="))


def test_a_file_does_not_get_right_under_an_override(tmp_path):
    file = write(tmp_path, "data: 3\nseed: x\n")
    assert refusal("data.name=a", "seed=1", conf=file).startswith("data=3: must have the keys name")


@pytest.mark.parametrize("method", ["other", "plain", "dc_ccl"])
def test_a_dumped_conf_is_read_back_as_the_same_method_s(tmp_path, method):
    conf = load_conf("digits", [f"method.name={method}", "rounds.lr=1e-5", "data.path=x"])
    assert load_conf(write(tmp_path, dump_conf(conf))) == conf


def test_sections_given_whole_are_merged_in_order():
    overrides = ["rounds.lr=0.2", "rounds={lr: 0.3, count: 4}", "rounds.count=5"]
    conf = load_conf("digits", overrides)
    assert (conf.rounds.lr, conf.rounds.count, conf.rounds.local_steps) == (0.3, 5, 16)
