"""The size of what is read: files, functions, constructors."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [
    f
    for place in ("dccl_flower", "strategies", "simulations")
    for f in ROOT.glob(f"{place}/**/*.py")
]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_and_its_functions_fit_their_screens(file):
    text = file.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 40, node.name
            if node.name == "__init__":
                assert len(node.args.args + node.args.kwonlyargs) <= 1 + 8, node.lineno
