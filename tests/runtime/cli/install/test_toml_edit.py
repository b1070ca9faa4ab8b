"""Edits keep all the rest of a text, comments and all."""

from __future__ import annotations

import tomllib

import pytest

from runtime.base.errors import Failed, InvalidRequest
from runtime.cli.install import toml_edit

PATTERN = "/etc/containerd/conf.d/*.toml"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "version = 3\n",
        "version = 3",
        "# [a comment]\nversion = 3\n[grpc]\n  address = 'x' # y\n",
        "imports = []\nversion = 3\n[grpc]\n",
        'imports = ["/a/*.toml"]\n',
        'version = 3\nimports = [ "/a]/*.toml", \'/b\', ]\n[x]\nimports = ["not this"]\n',
        'imports = [\n  "/a",\n  "/b"\n]\n[x]\n',
        '[[x]]\nimports = ["a"]\n',
    ],
)
def test_one_more_import(text: str) -> None:
    changed = toml_edit.with_import("f", text, PATTERN)
    before, after = tomllib.loads(text), tomllib.loads(changed)
    assert after == {**before, "imports": [*before.get("imports", []), PATTERN]}
    for line in text.splitlines():
        assert line.startswith("imports") or line in changed
    assert toml_edit.with_import("f", changed, PATTERN) == changed


def test_an_import_that_finds_no_place_is_refused() -> None:
    for text in ('"imports" = ["a"]\n', 'imports = [ # "\n "a" ]\n', "imports = 'a'\n"):
        with pytest.raises(Failed, match="by hand"):
            toml_edit.with_import("f", text, PATTERN)
    with pytest.raises(InvalidRequest, match="f: is no TOML"):
        toml_edit.with_import("f", "[", PATTERN)


@pytest.mark.parametrize("text", ["", "a = 1\n", "a = 1\n\n", "a = 1\n# end\n[b]\n"])
def test_a_block_comes_and_goes(text: str) -> None:
    block = "[plugins.x]\n  y = 1\n"
    changed = toml_edit.with_block(text, "gvisor", block)
    assert block in changed and changed.startswith(text)
    assert toml_edit.without_block(changed, "gvisor") == text
    assert toml_edit.with_block(changed, "gvisor", block) == changed
    other = toml_edit.with_block(changed + "[z]\n", "gvisor", "[plugins.w]\n")
    assert "plugins.x" not in other and "[z]" in other
    # Of another name nothing is taken.
    assert toml_edit.without_block(changed, "gvisor2") == changed


def test_a_block_without_its_end_is_refused() -> None:
    text = toml_edit.with_block("a = 1\n", "gvisor", "[x]\n").replace("# end of", "#")
    with pytest.raises(Failed, match="by hand"):
        toml_edit.without_block(text, "gvisor")
