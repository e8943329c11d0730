from __future__ import annotations

import gzip
import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from dccl_flower.config import ConfError
from dccl_flower.data.log_readers import log_files, read_amazon, read_table
from dccl_flower.interaction_config import LogDataConf

TABLE = "time,user,item,label,more\n30,zoe,tea,1,x\n10,ann,07,0,y\n"


def refusal(read, conf):
    with pytest.raises(ConfError) as caught:
        read(conf)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def rows_of(found):
    columns = [list(map(str, column)) for column in (found.users, found.items)]
    columns += [found.ratings.tolist(), found.times.tolist()]
    return list(zip(*columns, strict=True))


def table_conf(path, **changes):
    return LogDataConf("table", str(path), **changes)


def amazon_conf(path):
    return LogDataConf("amazon", str(path))


ROWS = [("zoe", "tea", 1.0, 30), ("ann", "07", 0.0, 10)]


@pytest.mark.parametrize(("separator", "character"), [(",", ","), ("tab", "\t"), (";", ";")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_csv_may_have_any_separator_and_encoding(tmp_path, separator, character, encoding):
    file = tmp_path / "rows.csv"
    file.write_bytes(TABLE.replace(",", character).encode(encoding))
    assert rows_of(read_table(table_conf(file, separator=separator, encoding=encoding))) == ROWS


def test_columns_may_have_any_names(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text(TABLE.replace("user", "who").replace("label", "stars"))
    assert rows_of(read_table(table_conf(file, user_column="who", label_column="stars"))) == ROWS


def test_parquet_and_all_files_of_a_folder(tmp_path):
    (tmp_path / "a.csv").write_text(TABLE)
    rows = {"user": ["bob"], "item": ["bun"], "label": [1], "time": [5]}
    parquet.write_table(pa.table(rows), tmp_path / "b.parquet")
    (tmp_path / "readme.md").write_text("no rows")
    assert rows_of(read_table(table_conf(tmp_path))) == [*ROWS, ("bob", "bun", 1.0, 5)]


def test_implicit_rows_need_no_label_column(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("user,item,time\nann,tea,3\n")
    assert read_table(table_conf(file, implicit=True)).ratings is None
    said = refusal(read_table, table_conf(file))
    assert said == "data.label_column=label: rows.csv has columns user, item, time"


@pytest.mark.parametrize("key", ["user", "item", "label", "time"])
def test_a_missing_column_is_told_with_those_there(tmp_path, key):
    file = tmp_path / "rows.csv"
    file.write_text(TABLE)
    said = refusal(read_table, table_conf(file, **{f"{key}_column": "when"}))
    assert said == f"data.{key}_column=when: rows.csv has columns time, user, item, label, more"


@pytest.mark.parametrize("separator", ["::", ""])
def test_a_separator_is_one_character(tmp_path, separator):
    (tmp_path / "rows.csv").write_text(TABLE)
    said = refusal(read_table, table_conf(tmp_path, separator=separator))
    assert said == f"data.separator={separator}: must be one character, or tab"


def test_another_separator_or_encoding_names_its_key(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_bytes(TABLE.replace("zoe", "zoé").encode("latin-1"))
    said = refusal(read_table, table_conf(file, separator="tab"))
    assert said == "data.encoding=utf-8: rows.csv is not of this encoding"
    said = refusal(read_table, table_conf(file, separator="tab", encoding="latin-1"))
    assert said == "data.separator=tab: the first row of rows.csv has 1 field"
    assert rows_of(read_table(table_conf(file, encoding="latin-1")))[0][0] == "zoé"


def test_missing_files_are_told(tmp_path):
    none = tmp_path / "none"
    assert refusal(log_files, table_conf(none)) == f"data.path={none}: no such file or folder"
    said = refusal(log_files, table_conf(tmp_path))
    suffixes = ".csv, .csv.gz, .tsv, .txt, .parquet"
    assert said == f"data.path={tmp_path}: holds no file that ends in {suffixes}"
    assert refusal(log_files, LogDataConf("amazon")) == "data.name=amazon: needs data.path"


def test_files_of_several_types_are_refused(tmp_path):
    for name, users in (("a", ["ann"]), ("b", [[7]])):
        rows = {"user": users, "item": ["bun"], "label": [1], "time": [5]}
        parquet.write_table(pa.table(rows), tmp_path / f"{name}.parquet")
    said = refusal(read_table, table_conf(tmp_path))
    assert said == f"data.path={tmp_path}: files hold columns of several types"


REVIEWS = [("A1", "0001", 5.0, 1_400_000_000), ("A2", "0002", 2.0, 1_300_000_000)]
OLD = [
    dict(zip(("reviewerID", "asin", "overall", "unixReviewTime"), r, strict=True)) for r in REVIEWS
]
NEW = [
    {"user_id": u, "parent_asin": i, "asin": "B", "rating": s, "timestamp": t * 1000, "images": []}
    for u, i, s, t in REVIEWS
]


@pytest.mark.parametrize("objects", [OLD, NEW], ids=["2014", "2023"])
@pytest.mark.parametrize("compress", [False, True])
def test_amazon_s_json_lines(tmp_path, objects, compress):
    data = "".join(json.dumps(each) + "\n" for each in objects).encode()
    file = tmp_path / ("reviews.jsonl.gz" if compress else "reviews.json")
    file.write_bytes(gzip.compress(data) if compress else data)
    assert rows_of(read_amazon(amazon_conf(file))) == REVIEWS


@pytest.mark.parametrize("name", ["ratings.csv", "ratings.csv.gz"])
def test_amazon_s_csv_with_and_without_a_header(tmp_path, name):
    file = tmp_path / name
    old = "".join(f"{','.join(map(str, row))}\n" for row in REVIEWS)
    new = "user_id,parent_asin,rating,timestamp\n" + old.replace("00000000\n", "00000000000\n")
    for text in (old, new):
        file.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
        assert rows_of(read_amazon(amazon_conf(tmp_path))) == REVIEWS


def test_what_is_no_review_is_refused(tmp_path):
    file = tmp_path / "reviews.csv"
    file.write_text("A1,0001,5\n")
    said = refusal(read_amazon, amazon_conf(file))
    assert said == f"data.path={file}: rows must be user,item,rating,timestamp"
    file = tmp_path / "reviews.json"
    file.write_text('{"reviewerID": "A1", "overall": 3.0, "unixReviewTime": 3}\n')
    assert refusal(read_amazon, amazon_conf(file)) == f"data.path={file}: item: row 0 holds nothing"


def test_ids_of_numbers_are_kept_as_text_in_a_csv(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("user,item,label,time\n007,1,1,3\n7,1,1,3\n")
    assert len(np.unique(read_table(table_conf(file)).users)) == 2
