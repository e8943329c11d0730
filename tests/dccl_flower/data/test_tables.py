from __future__ import annotations

import gzip

import pyarrow as pa
import pytest
from pyarrow import parquet

from dccl_flower.config import ConfError
from dccl_flower.data import tables


def written(tmp_path, text, name="rows.csv", encoding="utf-8"):
    file = tmp_path / name
    file.write_bytes(text.encode(encoding))
    return file


def test_first_fields_may_be_quoted_and_follow_a_mark_of_utf_8(tmp_path):
    file = written(tmp_path, '\ufeffa,"b, c",d\n1,2,3\n')
    assert tables.first_fields(file, ",", "utf-8") == ["a", "b, c", "d"]


def test_a_compressed_csv_reads_as_it_is(tmp_path):
    file = tmp_path / "rows.csv.gz"
    file.write_bytes(gzip.compress(b"user;n\n07;3\n"))
    assert tables.first_fields(file, ";", "utf-8") == ["user", "n"]
    assert tables.read_csv(file, ["n", "user"], ["user"], ";").to_pydict() == {
        "n": [3],
        "user": ["07"],
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a;b\n1;2\n", r"^data\.separator=,: the first row of rows\.csv has 1 field$"),
        ("", r"^data\.path=.*rows\.csv: is empty$"),
    ],
)
def test_a_first_row_without_fields_is_refused(tmp_path, content, said):
    with pytest.raises(ConfError, match=said):
        tables.first_fields(written(tmp_path, content), ",", "utf-8")


def test_another_encoding_is_refused_wherever_it_shows(tmp_path):
    said = r"^data\.encoding=(utf-8|klingon): rows\.csv is not of this encoding$"
    header = written(tmp_path, "usér,n\nann,1\n", encoding="latin-1")
    with pytest.raises(ConfError, match=said):
        tables.first_fields(header, ",", "utf-8")
    row = written(tmp_path, "user,n\nandré,1\n", encoding="latin-1")
    with pytest.raises(ConfError, match=said):
        tables.read_csv(row, ["user"], ["user"])
    for read in (
        lambda: tables.first_fields(row, ",", "klingon"),
        lambda: tables.read_csv(row, ["user"], ["user"], encoding="klingon"),
    ):
        with pytest.raises(ConfError, match=said):
            read()
    assert tables.read_csv(row, ["user"], ["user"], encoding="latin-1")["user"][0].as_py() == (
        "andré"
    )


def test_a_ragged_csv_and_a_column_that_is_not_there_are_refused_in_one_line(tmp_path):
    for file, columns in (
        (written(tmp_path, "a,b\n1,2\n3\n", "ragged.csv"), ["a"]),
        (written(tmp_path, "a,b\n1,2\n", "short.csv"), ["c"]),
    ):
        with pytest.raises(ConfError, match=r"^data\.path=.*csv: cannot be read \(.+\)$") as caught:
            tables.read_csv(file, columns, [])
        assert len(str(caught.value).splitlines()) == 1


def test_broken_json_and_parquet_are_refused(tmp_path):
    file = written(tmp_path, "{nothing\n")
    for read in (
        lambda: tables.read_json_lines(file, {"a": pa.int64()}),
        lambda: tables.read_parquet(file, ["a"]),
        lambda: tables.parquet_columns(file),
    ):
        with pytest.raises(ConfError, match=r"^data\.path=.*: cannot be read \(.+\)$"):
            read()


def test_json_fields_that_are_missing_are_null(tmp_path):
    file = written(tmp_path, '{"a": 1, "z": [2]}\n{"z": 3}\n', "rows.json")
    fields = {"a": pa.int64(), "b": pa.string()}
    assert tables.read_json_lines(file, fields).to_pydict() == {"a": [1, None], "b": [None, None]}


def test_parquet_columns_are_chosen(tmp_path):
    file = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"a": [1], "b": [2]}), file)
    assert tables.parquet_columns(file) == ["a", "b"]
    assert tables.read_parquet(file, ["b"]).column_names == ["b"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1, None], "x: row 1 holds nothing"),
        (["1", "many"], "x: must hold numbers, not string"),
        ([1.0, float("nan")], "x: row 1 is not finite"),
        ([[1], [2]], "x: must hold numbers, not list<item: int64>"),
    ],
)
def test_what_is_no_number_is_refused(values, said):
    for read in (tables.numbers, tables.seconds):
        with pytest.raises(ConfError) as caught:
            read(pa.table({"n": values}), "n", "x")
        assert str(caught.value).startswith(said.split("<")[0])


def test_moments_become_seconds():
    moments = pa.array([0, 2_500]).cast(pa.timestamp("ms"))
    found = [tables.seconds(pa.table({"t": values}), "t", "x") for values in (moments, [0.5, 2])]
    assert [times.tolist() for times in found] == [[0, 2], [0, 2]]
    days = pa.table({"t": pa.array([1], pa.date32()), "d": pa.array([1], pa.duration("s"))})
    assert tables.seconds(days, "t", "x").tolist() == [86400]
    with pytest.raises(ConfError, match="must hold moments, not duration"):
        tables.seconds(days, "d", "x")
