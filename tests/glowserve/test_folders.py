"""Which files of a folder are pictures, and what is left out."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
from PIL import Image

from glowserve.folders import FILE_SUFFIXES, FolderPictures, find_pictures, unpacking
from glowserve.images import read_file


def save(path: Path, kind: str = "PNG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), 7).save(path, kind)


def kind_of(suffix: str) -> str:
    Image.init()
    return Image.registered_extensions().get(suffix, "JPEG")


# Files


@pytest.mark.parametrize("suffix", sorted(FILE_SUFFIXES))
def test_every_suffix_is_that_of_a_format_that_is_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    save(path, kind_of(suffix))

    assert find_pictures(tmp_path).names == [path.name]
    assert read_file(path)


def test_no_suffix_of_a_format_that_is_read_is_missing() -> None:
    Image.init()
    known = {
        suffix for suffix, kind in Image.registered_extensions().items() if kind in ("PNG", "JPEG", "WEBP")
    }

    assert known <= FILE_SUFFIXES


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF"])
def test_a_file_without_suffix_is_a_picture_if_it_begins_like_one(kind: str, tmp_path: Path) -> None:
    save(tmp_path / "IMG_0001", kind)
    (tmp_path / "README").write_text("BMP and P5 are formats of pictures")
    (tmp_path / "empty").touch()

    found = find_pictures(tmp_path)

    assert found.names == ["IMG_0001"]
    assert found.left_out() == "2 without suffix"


def test_suffixes_may_have_capital_letters(tmp_path: Path) -> None:
    save(tmp_path / "a.JPG", "JPEG")

    assert find_pictures(tmp_path).names == ["a.JPG"]


def test_pictures_are_ordered_by_folder_and_name(tmp_path: Path) -> None:
    for name in ("b/1.png", "a.png", "a/2.png", "a/10.png", "a b/1.png", "B.png"):
        save(tmp_path / name)

    expected = ["B.png", "a/10.png", "a/2.png", "a b/1.png", "a.png", "b/1.png"]
    assert find_pictures(tmp_path).names == expected


def test_the_order_does_not_depend_on_that_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(30):
        save(tmp_path / f"{i % 3}" / f"{i}.png")
        (tmp_path / f"link{i}").symlink_to(f"{i % 3}")
        (tmp_path / f"{i}-link.png").symlink_to(f"{i % 3}/{i}.png")
    first = find_pictures(tmp_path)
    scandir = os.scandir

    class Reversed:
        def __init__(self, path: Path) -> None:
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None:
            pass

        def close(self) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    again = find_pictures(tmp_path)

    assert again.names == first.names
    assert len(first.names) == 30
    assert again.left_out() == first.left_out() == "60 repeated by links"


def test_a_name_that_is_not_utf_8_is_a_name_like_any_other(tmp_path: Path) -> None:
    save(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")))

    (name,) = find_pictures(tmp_path).names

    assert os.fsencode(name) == b"caf\xe9.png"
    assert read_file(tmp_path / name)


# What is left out


@pytest.mark.parametrize(
    "name",
    [
        ".DS_Store",
        "._0000.png",
        ".hidden.png",
        "Thumbs.db",
        ".cache/a.png",
        "__MACOSX/._a.png",
        "@eaDir/a.png",
    ],
)
def test_hidden_files_and_those_of_operating_systems_are_left_out_and_counted(
    name: str, tmp_path: Path
) -> None:
    save(tmp_path / "0000.png")
    save(tmp_path / name)

    found = find_pictures(tmp_path)

    assert found.names == ["0000.png"]
    assert found.left_out() == "1 hidden"


def test_a_folder_whose_name_is_that_of_a_picture_is_a_folder(tmp_path: Path) -> None:
    save(tmp_path / "album.png" / "a.png")

    assert find_pictures(tmp_path).names == ["album.png/a.png"]


def test_other_files_are_counted_by_suffix(tmp_path: Path) -> None:
    for i, suffix in enumerate((".txt", ".txt", ".TXT", ".json", ".json", ".heic", ".a", ".b")):
        (tmp_path / f"{i}{suffix}").touch()

    assert find_pictures(tmp_path).left_out() == "3 .txt, 2 .json, 1 .a, 2 of other kinds"


def test_what_might_never_end_when_it_is_read_is_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("pipe.png")
    (tmp_path / "null.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket.png"))

        found = find_pictures(tmp_path)

    assert found.names == []
    assert found.left_out() == "4 neither file nor folder"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "secret" / "b.png")
    (tmp_path / "secret").chmod(0)

    found = find_pictures(tmp_path)
    (tmp_path / "secret").chmod(0o700)

    assert found.names == ["a.png"]
    assert found.left_out() == f"1 unreadable: {tmp_path}/secret (Permission denied)"


def test_a_folder_too_deep_to_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    for _ in range(20):
        Path("d" * 250).mkdir()
        os.chdir("d" * 250)

    found = find_pictures(tmp_path)
    monkeypatch.undo()

    assert found.names == ["a.png"]
    assert found.left_out().startswith(f"1 unreadable: {tmp_path}/ddd")
    assert found.left_out().endswith(" (File name too long)")


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        find_pictures(tmp_path / "nowhere")


# Links


def test_linked_folders_and_files_are_read(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "cats" / "1.png")
    save(tmp_path / "elsewhere" / "2.png")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cats").symlink_to(tmp_path / "elsewhere" / "cats")
    (photos / "dog.png").symlink_to("../elsewhere/2.png")
    (tmp_path / "link").symlink_to("photos")

    for folder in (photos, tmp_path / "link"):
        found = find_pictures(folder)
        assert found.names == ["cats/1.png", "dog.png"]
        assert found.left_out() == ""


def loop_to_itself(folder: Path) -> None:
    (folder / "again").symlink_to(".")


def loop_of_two(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    (folder / "a" / "x").symlink_to("../b")
    (folder / "b" / "y").symlink_to("../a")


def everything_leads_to_everything(folder: Path) -> None:
    for i in range(12):
        (folder / str(i)).mkdir()
        for k in range(12):
            (folder / str(i) / f"to{k}").symlink_to(f"../{k}")


@pytest.mark.parametrize("loop", [loop_to_itself, loop_of_two, everything_leads_to_everything])
def test_links_in_circles_end(loop: object, tmp_path: Path) -> None:
    save(tmp_path / "1.png")
    loop(tmp_path)  # type: ignore[operator]
    began = time.monotonic()

    assert find_pictures(tmp_path).names == ["1.png"]
    assert time.monotonic() - began < 30


def test_a_link_that_leads_to_itself_is_named(tmp_path: Path) -> None:
    save(tmp_path / "1.png")
    (tmp_path / "album").symlink_to("album")

    found = find_pictures(tmp_path)

    assert found.names == ["1.png"]
    assert found.left_out().startswith(f"1 unreadable: {tmp_path}/album (a link: Too many levels")


def test_what_two_paths_lead_to_is_read_once_and_by_its_own_path(tmp_path: Path) -> None:
    save(tmp_path / "z" / "1.png")
    save(tmp_path / "z" / "IMG_2")
    (tmp_path / "a").symlink_to("z")
    (tmp_path / "b.png").symlink_to("z/1.png")
    (tmp_path / "c").symlink_to("z/IMG_2")

    found = find_pictures(tmp_path)

    assert found.names == ["z/1.png", "z/IMG_2"]
    assert found.repeated == ["a", "b.png", "c"]
    assert found.left_out() == "3 repeated by links"


def test_several_links_to_one_file_elsewhere_are_one_picture(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "photos").mkdir()
    for name in ("b.png", "a.png"):
        (tmp_path / "photos" / name).symlink_to("../elsewhere/1.png")

    assert find_pictures(tmp_path / "photos").names == ["a.png"]


def test_a_link_to_a_hidden_file_is_a_picture(tmp_path: Path) -> None:
    save(tmp_path / ".store" / "abc")
    save(tmp_path / ".def")
    (tmp_path / "1.png").symlink_to(".store/abc")
    (tmp_path / "2.png").symlink_to(".def")

    assert find_pictures(tmp_path).names == ["1.png", "2.png"]


def test_a_broken_link_with_a_pictures_suffix_is_left_to_whoever_reads_it(tmp_path: Path) -> None:
    (tmp_path / "1.png").symlink_to("nowhere")

    found = find_pictures(tmp_path)

    assert found.names == ["1.png"]
    assert found.left_out() == ""


# Messages


def test_at_most_three_unreadable_folders_are_named() -> None:
    found = FolderPictures(Path("x"), unreadable=[f"{i} (reason)" for i in (4, 2, 3, 1)])

    assert found.left_out() == "4 unreadable: 1 (reason), 2 (reason), 3 (reason) and 1 more"


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("p.zip", "unzip p.zip"),
        ("p.tar.gz", "tar xf p.tar.gz"),
        ("p.TGZ", "tar xf p.TGZ"),
        ("p.7z", "7z x p.7z"),
    ],
)
def test_an_archive_is_named_with_the_command_that_unpacks_it(name: str, command: str) -> None:
    assert f"(`{command}`)" in (unpacking(Path(name)) or "")
    assert unpacking(Path("p.png")) is None
