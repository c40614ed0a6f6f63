"""Storage: the same behaviour on a local folder, on an S3 server and on an fsspec file system."""

import errno
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.html import Section, figure, folded, new_figure, page, paragraph, table
from engine.store.storage import Location


@pytest.fixture(params=["local", "s3", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Location]:
    if request.param == "local":
        yield Location.parse(tmp_path / "new" / "folder")
    elif request.param == "s3":
        yield Location.parse(request.getfixturevalue("s3")) / "folder"
    else:
        place = Location.parse(f"memory://{tmp_path.name}/folder")
        yield place
        place.delete()


def test_files_of_a_folder(folder: Location) -> None:
    assert not folder.exists() and folder.list() == [] and folder.size() is None
    folder.make_folder()
    (folder / "a.bin").write_atomically(b"0123456789")
    (folder / "sub").make_folder()
    (folder / "sub" / "b").write_atomically(b"")
    assert folder.is_dir() and folder.list() == ["a.bin", "sub"] and not folder.is_file()
    file = pickle.loads(pickle.dumps(folder / "a.bin"))
    assert (file.name, file.parent, file.size(), file.is_file(), file.is_dir()) == ("a.bin", folder, 10, True, False)
    assert file.read_bytes() == b"0123456789"
    with file.open_input() as opened:
        assert opened.read_at(2, 5) == b"56"
    file.write_atomically(b"new")
    assert Location.parse(str(file)).read_bytes() == b"new"
    file.delete()
    file.delete()
    assert not file.exists() and folder.exists()
    folder.delete()
    assert not (folder / "sub" / "b").exists() and folder.list() == []


def test_an_error_leaves_no_file_and_the_old_one_stays(folder: Location) -> None:
    folder.make_folder()
    (folder / "old").write_atomically(b"old")
    for name in ("old", "new"):
        with pytest.raises(OSError) as caught, (folder / name).writing() as file:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        assert caught.value.errno == errno.ENOSPC and str(caught.value.filename).endswith(f"{name}{folder.query}")
    assert folder.list() == ["old"] and (folder / "old").read_bytes() == b"old"


def test_what_is_missing_is_named(folder: Location) -> None:
    for read in ((folder / "none").read_bytes, (folder / "none").open_input):
        with pytest.raises(FileNotFoundError) as caught:
            read()
        assert "folder/none" in str(caught.value.filename)


def test_places_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(Location.parse("a/../b")) == str(tmp_path / "b") == str(Location.parse(tmp_path / "b"))
    assert Location.parse(f"file://{tmp_path}/b").path == tmp_path / "b" and Location.parse("b").is_local
    assert str(Location.parse("/x") / "/y/z") == "/y/z" and str(Location.parse("/") / "y") == "/y"
    remote = Location.parse("s3://key:secret@bucket/a/?scheme=http")
    assert str(remote / "b.tar") == "s3://key:secret@bucket/a/b.tar?scheme=http" and not remote.is_local
    assert str(Location.parse("/x") / str(remote)) == str(remote) and "secret" not in remote.shown
    with pytest.raises(ValueError, match=r"path: got s3://bucket/a\?scheme=http, allowed here: a local path"):
        _ = remote.path
    with pytest.raises(ValueError, match="URL: got nothing://known"):
        Location.parse("nothing://known/x").list()
    with pytest.raises(ValueError, match="got an empty one"):
        Location.parse("")


def test_html_pages_are_escaped_and_reproducible() -> None:
    def make() -> str:
        plot = new_figure()
        plot.subplots().loglog([1, 10], [5, 2])
        blocks = [paragraph("a < b"), table(["name", "count"], [["<i>", 1234], ["x", None]]), figure(plot, "A & B")]
        return page("Title <1>", [Section("Part", [*blocks, folded("more", paragraph("inside"))])])

    text = make()
    assert text == make()
    for part in ("Title &lt;1&gt;", "a &lt; b", "&lt;i&gt;", '<td class="n">1,234</td>', "A &amp; B</figcaption>", "–"):
        assert part in text
    assert (
        text.count("<svg") == text.count("</svg>") == 1
        and "<script" not in text
        and "http" not in text.replace("http://www.w3.org/", "")
    )
