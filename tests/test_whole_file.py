"""Files that are written whole or not at all."""

import os

import pytest

from pml_s2sd.whole_file import whole_file


@pytest.mark.parametrize(("mode", "content", "stored"), [("wb", b"\x00\xff", b"\x00\xff"), ("w", "φ", "φ".encode())])
def test_a_file_is_there_when_the_block_has_ended(tmp_path, mode, content, stored):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with whole_file(path, mode) as file:
        file.write(content)
        file.flush()
        assert path.read_text() == "before"
        assert (tmp_path / "a.txt.tmp").read_bytes() == stored
    assert path.read_bytes() == stored
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(error), whole_file(path, "w") as file:
        file.write("half of")
        raise error
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/null")
    for path, error, message in (
        (tmp_path / "no" / "a.txt", FileNotFoundError, "no folder .*no to write a.txt into; make it first"),
        (tmp_path, ValueError, "is a folder; give the name of a file to write"),
        (tmp_path / "pipe", ValueError, "pipe is no regular file, and would be replaced by one; give another name"),
        (tmp_path / "device", ValueError, "device is no regular file"),
    ):
        with pytest.raises(error, match=message), whole_file(path):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device", "pipe"]
