from __future__ import annotations

import pytest

from dccl_flower.config import ConfError
from dccl_flower.data.movielens import movielens_files, read_movielens
from dccl_flower.interaction_config import LogDataConf

FLAGS_100K = {1: "0|0|0|1", 2: "0|1|1|0", 3: "0|0|0|0"}
FILES = {
    "100K": {
        "u.data": "196\t1\t3\t881250949\n186\t3\t5\t891717742\n",
        "u.user": "186|24|M|technician|85711\n196|57|F|artist|94043\n",
        "u.item": "".join(
            f"{movie}|Café (1995)|01-Jan-1995||http://x?Caf|{flags}\n"
            for movie, flags in FLAGS_100K.items()
        ),
    },
    "1M": {
        "ratings.dat": "196::1::3::881250949\n186::3::5::891717742\n",
        "users.dat": "186::M::18::3::48067\n196::F::56::10::70072\n",
        "movies.dat": (
            "1::Café: Part::One (1995)::Drama|Comedy\n2::X (1999)::Action\n3::Y (1)::Comedy\n"
        ),
    },
    "20M": {
        "ratings.csv": (
            "userId,movieId,rating,timestamp\n196,1,3.0,881250949\n186,3,5.0,891717742\n"
        ),
        "movies.csv": (
            'movieId,title,genres\n1,"Café, The",Drama|Comedy\n2,X,Action\n3,Y,Comedy\n'
        ),
    },
}


def written(tmp_path, version, **changes):
    encoding = "utf-8" if version == "20M" else "latin-1"
    for name, text in (FILES[version] | changes).items():
        (tmp_path / name).write_bytes(text.encode(encoding))
    return LogDataConf("movielens", str(tmp_path))


def refusal(read, conf):
    with pytest.raises(ConfError) as caught:
        read(conf)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("version", FILES)
def test_ratings_of_every_version(tmp_path, version):
    conf = written(tmp_path, version)
    assert movielens_files(conf)[0] == version
    found = read_movielens(conf)
    assert found.users.tolist() == [196, 186]
    assert found.items.tolist() == [1, 3]
    assert found.ratings.tolist() == [3.0, 5.0]
    assert found.times.tolist() == [881250949, 891717742]


def test_age_groups_genders_and_occupations(tmp_path):
    # Groups begin at 18, 25, 35, 45, 50 and 56; F is 1; occupations are numbered from 1.
    assert read_movielens(written(tmp_path, "100K")).profiles == {186: (2, 2, 2), 196: (7, 1, 1)}
    for name in FILES["100K"]:
        (tmp_path / name).unlink()
    assert read_movielens(written(tmp_path, "1M")).profiles == {186: (2, 2, 4), 196: (7, 1, 11)}


def test_20m_knows_nothing_of_its_users(tmp_path):
    assert read_movielens(written(tmp_path, "20M")).profiles == {}


@pytest.mark.parametrize("version", ["1M", "20M"])
def test_first_genres_are_numbered_by_name(tmp_path, version):
    assert read_movielens(written(tmp_path, version)).features == {1: (3,), 2: (1,), 3: (2,)}


def test_first_genres_of_100k_are_the_first_flags(tmp_path):
    assert read_movielens(written(tmp_path, "100K")).features == {1: (4,), 2: (2,), 3: (0,)}


def test_missing_folders_and_files_are_told(tmp_path):
    none = LogDataConf("movielens", str(tmp_path / "none"))
    assert refusal(movielens_files, none) == f"data.path={tmp_path}/none: no such folder"
    conf = written(tmp_path, "1M")
    (tmp_path / "users.dat").unlink()
    assert refusal(read_movielens, conf) == (
        f"data.path={tmp_path}: holds none of these together: u.data, u.user, u.item; "
        "ratings.dat, users.dat, movies.dat; ratings.csv, movies.csv"
    )
    assert (
        refusal(movielens_files, LogDataConf("movielens")) == "data.name=movielens: needs data.path"
    )


@pytest.mark.parametrize(
    ("version", "name", "text", "said"),
    [
        ("100K", "u.data", "1,2,3,4\n", "u.data: cannot be read (CSV parse error: "),
        ("100K", "u.data", "1\t2\tmany\t4\n", "u.data: must hold numbers, not string"),
        ("100K", "u.data", "1\t2\t\t4\n", "u.data: row 0 holds nothing"),
        ("100K", "u.user", "1,24,M,x,y\n", "u.user: row 0 has 1 of 5 fields between '|'"),
        ("1M", "users.dat", "1::F::old::1::2\n", ": cannot be read (invalid literal for int()"),
        ("20M", "ratings.csv", "a,b\n1,2\n", "ratings.csv: cannot be read ("),
        ("20M", "movies.csv", "a,b\n1,2\n", ": cannot be read ('movieId')"),
    ],
)
def test_damaged_files_are_told(tmp_path, version, name, text, said):
    found = refusal(read_movielens, written(tmp_path, version, **{name: text}))
    assert found.startswith(f"data.path={tmp_path}")
    assert said in found
