"""Text that YAML would take for something else, and files that are made to break a reader."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from refusals import refusal

from dccl_flower.config import ConfError, path
from dccl_flower.config_loading import dump_conf, load_conf
from dccl_flower.fleet.profiles import load_fleet
from dccl_flower.strategies.dc_ccl.conf import DcCclConf
from dccl_flower.typed_yaml import read_yaml, shown, typed

TEXTS = [
    "null", "None", "~", "true", "no", "off", "y", "010", "0x10", "1e3", "1_000", "1:30", ".inf",
    "2024-01-01", "a #b", "#a", "a: b", "{a: 1}", "[a, b]", "{", "[", "${seed}", "${", "???", "<<",
    "&a", "*a", "!!int 3", "'q'", '"', "%", "@a", "`", "|", ">", "-", "=", " x ", "größe", "a\\tb",
]  # fmt: skip


def write(folder, text, name="mine.yaml"):
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(file)


@pytest.mark.parametrize("text", TEXTS)
def test_an_override_of_a_text_is_that_text(text):
    assert load_conf("digits", [f"data.name={text}"]).data.name == text


@pytest.mark.parametrize("text", [text for text in TEXTS if text not in ("null", "None", "~")])
def test_an_override_of_a_path_is_a_file_of_that_name(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    assert load_conf("digits", [f"data.path={text}"]).data.path == f"{tmp_path}/{text}"


@pytest.mark.parametrize("text", ["null", "None", "", "NULL"])
def test_null_is_none_where_none_is_allowed(text):
    overrides = [f"{key}={text}" for key in ("data.path", "devices.per_round", "target_gain")]
    conf = load_conf("digits", overrides)
    assert (conf.data.path, conf.devices.per_round, conf.target_gain) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("010", 10), ("008", 8), ("+7", 7), ("1_000", 1000)]
)
def test_an_integer_is_decimal_in_overrides_and_files(tmp_path, text, number):
    assert load_conf("digits", [f"seed={text}"]).seed == number
    assert load_conf(write(tmp_path, f"seed: {text}\n")).seed == number


@pytest.mark.parametrize("text", ["0x10", "0o7", "1:30", "1e3", "3.0", "", "[3]", "${seed}", "٣ ٣"])
def test_what_is_not_a_decimal_integer_is_refused(text):
    assert refusal(f"seed={text}") == f"seed={text}: must be an integer"


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("Yes", True), ("ON", True), ("false", False), ("no", False), ("0", False)],
)
def test_a_boolean_has_yaml_s_names(tmp_path, text, value):
    assert load_conf("digits", [f"data.rgb={text}"]).data.rgb is value
    assert load_conf(write(tmp_path, f"data: {{rgb: {text}}}")).data.rgb is value


@pytest.mark.parametrize("text", ["no", "yes", "on", "1e5", "010", "2024-01-01", "1:30", "${seed}"])
def test_a_plain_text_in_a_file_stays_text(tmp_path, text):
    given = f"name: {text}\ndata: {{name: {text}}}\narms: {{changes: {{strict: [{text}]}}}}\n"
    if "$" in text:
        given = (
            f"name: {text}\ndata:\n  name: {text}\narms:\n  changes:\n    strict:\n    - {text}\n"
        )
    conf = load_conf(write(tmp_path, given))
    assert (conf.name, conf.data.name, conf.arms.changes["strict"]) == (text, text, [text])


def test_quotes_keep_null_a_text_in_a_file(tmp_path):
    plain, quoted = (
        load_conf(write(tmp_path, f"data: {{group_column: {text}}}")) for text in ("null", "'null'")
    )
    assert (plain.data.group_column, quoted.data.group_column) == (None, "null")


@settings(deadline=None)
@example("", "\x85:ü", ["a\u2028 b", "\ufeffc\n\n d "])
@given(st.text(), st.one_of(st.none(), st.text()), st.lists(st.text()))
def test_any_text_is_dumped_and_read_back(name, column, changes):
    conf = DcCclConf(name=f"n{name}")
    conf.data.group_column = f"c{column}" if column is not None else None
    conf.arms.changes["strict"] = [f"c{change}" for change in changes]
    assert typed(DcCclConf, read_yaml("dumped", dump_conf(conf))) == conf


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("rounds:\n  count: 3\nseed: 1\nrounds:\n  lr: 1\n", "line 4: rounds stands in line 1"),
        ("rounds:\n  count: 3\n  count: 4\n", "line 3: count stands in line 2"),
        ("model:\n  co:\n    name: a\n    name: a\n", "line 4: name stands in line 3"),
        ("data: {name: a, name: b}\n", "line 1: name stands in line 1"),
        ("seed: 1\n'seed': 2\n", "line 2: seed stands in line 1"),
        ("nosuch: [{a: 1, b: 2,\n a: 2}]\n", "line 2: a stands in line 1"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path, text, line):
    file = write(tmp_path, text)
    assert refusal(conf=file) == f"conf {file!r}: {line} already"


def test_a_key_that_stands_twice_in_device_profiles_or_an_override_is_refused_too(tmp_path):
    file = write(tmp_path, "tiers:\n- name: a\n  share: 1\n  share: 2\n")
    with pytest.raises(ConfError, match=r"line 4: share stands in line 3 already$"):
        load_fleet(file, 1, 0)
    assert refusal("rounds={lr: 1, lr: 2}") == "rounds: line 1: lr stands in line 1 already"


def test_anchors_and_merges_are_yaml_s(tmp_path):
    text = "pretrain: &one {epochs: 3, lr: 0.2}\ndistil: {<<: *one, lr: 0.4}\n"
    conf = load_conf(write(tmp_path, text))
    assert (conf.pretrain.epochs, conf.pretrain.lr) == (3, 0.2)
    assert (conf.distil.epochs, conf.distil.lr) == (3, 0.4)


def bomb(wrap):
    lines = ["x0: &x0 {a: 1, b: 2}"]
    lines += [f"x{i}: &x{i} {wrap(', '.join([f'*x{i - 1}'] * 10))}" for i in range(1, 20)]
    return "\n".join(lines) + "\n"


HOSTILE = {
    "bomb": bomb(lambda them: f"[{them}]"),
    "merge bomb": bomb(lambda them: f"{{<<: [{them}]}}"),
    "bomb in a section": bomb(lambda them: f"[{them}]").replace("x19:", "data:"),
    "bomb in a text": bomb(lambda them: f"[{them}]").replace("x19:", "name:"),
    "list in itself": "data: &a [*a]\n",
    "section in itself": "data: &a {name: *a}\n",
    "merged with itself": "data: &a {<<: *a, no: 1}\n",
    "deep": "a: " + "[" * 5000,
    "deep mappings": "{a: " * 5000,
    "deep enough to be read": "data: " + "[" * 60 + "]" * 60,
    "python": "seed: !!python/object/apply:os.getcwd []\n",
    "integer by tag": "seed: !!int abc\n",
    "date by tag": "seed: !!timestamp x\n",
    "binary": "name: !!binary x\n",
    "set": "data: !!set {a, b}\n",
    "list as key": "? [a]\n: 1\n",
    "mapping as key": "{{a: 1}: 2}\n",
    "two documents": "seed: 1\n---\nseed: 2\n",
    "tab": "data:\n\tname: a\n",
    "control character": "name: a\0b\n",
    "undefined alias": "name: *a\n",
    "null key": "~: 3\n",
    "line break in a key": '"a\\nb": 3\n',
    "line break in a value": 'seed: "a\\nb"\n',
    "long": f"seed: {'9' * 100_000}\n",
    "not UTF-8": b"name: \xff\n",
    "UTF-16": "seed: 1\n".encode("utf-16"),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(tmp_path, text):
    assert len(refusal(conf=write(tmp_path, text))) < 1000
    with pytest.raises(ConfError) as caught:
        load_fleet(write(tmp_path, text), 1, 0)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1000


@settings(deadline=None)
@given(st.text(alphabet="ab:-[]{}&*<,!?|>#%@'\"\n\t 0~=", max_size=40))
def test_any_text_is_read_or_refused_in_one_line(text):
    message = "file: "
    try:
        read_yaml("file", text)
    except ConfError as error:
        message = str(error)
    assert message.startswith("file: ")
    assert len(message.splitlines()) == 1


def test_a_byte_order_mark_and_other_line_ends_are_no_matter(tmp_path):
    text = "\ufeffname: a\r\nrounds:\r\n  count: 4\r\n"
    conf = load_conf(write(tmp_path, text))
    assert (conf.name, conf.rounds.count) == ("a", 4)


@dataclass
class Part:
    """A section whose keys are needed."""

    name: str
    sizes: list[int] = field(default_factory=list)
    place: str | None = path(".bin")


@dataclass
class Whole:
    """Rows of sections."""

    parts: list[Part]


def test_rows_are_typed_and_named_by_their_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"name": "a", "sizes": ["1", "02"], "place": "x.bin"}, {"name": "b", "place": "x"}]
    first, second = Part("a", [1, 2], f"{tmp_path}/x.bin"), Part("b", [], "x")
    assert typed(Whole, {"parts": rows}) == Whole([first, second])
    with pytest.raises(ConfError, match=r"^parts\[1\]\.name: is missing$"):
        typed(Whole, {"parts": [{"name": "a"}, {}]})
    with pytest.raises(ConfError, match=r"^parts\[0\]\.foo: unknown key; allowed here: name, "):
        typed(Whole, {"parts": [{"foo": "a"}]})


def test_a_value_is_shown_in_one_short_line():
    assert shown("a\n  b\r\nc") == "a b c"
    assert shown(["a", {"b": None}]) == "[a, {b: None}]"
    assert shown("x" * 500, 10) == "xxxxxxxxxx..."
