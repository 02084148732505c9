"""The archive's way here, from a stand-in for the Hub on this machine: cut off, resumed, checked, unpacked safely."""

import hashlib
import io
import json
import os
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

import prepare_tinystories
from lm_trials.console import UsageError
from lm_trials.stories.download import ARCHIVE, FOLDER, check_sha256, download_archive, unpack_archive


def tar_of(*members, mode="w:gz"):
    """Build an archive of (name, content) pairs and TarInfo objects."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


def shard(first, count=60):
    stories = [f"Story {n} of a cat that sat on {n * 7919 % 1000} mats." for n in range(first, first + count)]
    return json.dumps([{"story": story} for story in stories]).encode()


CONTENT = tar_of(("data10.json", shard(0)), ("data2.json", shard(100)), ("noise.bin", os.urandom(3 << 20)))


class Hub(ThreadingHTTPServer):
    """Answers as the Hub does for one large file; `cut_after` bytes it hangs up, once."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.content = CONTENT
        self.sha256 = hashlib.sha256(CONTENT).hexdigest()
        self.cut_after = None
        self.knows_ranges = True
        self.asked = []


class Answer(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(200, self.server.content, body=False)

    def do_GET(self):
        hub = self.server
        hub.asked.append(self.headers.get("Range"))
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")) if hub.knows_ranges else 0
        self.answer(206 if hub.knows_ranges else 200, hub.content[start:], body=True)

    def answer(self, status, content, body):
        hub = self.server
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"of-the-small-pointer-file"')
        self.send_header("X-Linked-ETag", f'"{hub.sha256}"')
        self.send_header("X-Linked-Size", str(len(hub.content)))
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if body:
            self.wfile.write(content[: hub.cut_after])
            self.close_connection = True
            hub.cut_after = None

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.endpoint = f"http://127.0.0.1:{server.server_port}"
        yield server
        server.shutdown()
        thread.join()


def test_a_download_that_was_cut_off_goes_on_where_it_stopped(hub, tmp_path):
    hub.cut_after = 2_000_000
    with pytest.raises(UsageError, match=r"cannot be downloaded .*bytes are here; run the same command again") as error:
        download_archive(tmp_path, hub.endpoint)
    assert "\n" not in str(error.value)
    (partial,) = tmp_path.iterdir()
    have = partial.stat().st_size
    assert 0 < have <= 2_000_000
    assert not (tmp_path / ARCHIVE).exists()

    assert download_archive(tmp_path, hub.endpoint).read_bytes() == CONTENT
    assert hub.asked == ["bytes=0-", f"bytes={have}-"]
    assert [path.name for path in tmp_path.iterdir()] == [ARCHIVE]


def test_a_server_that_knows_no_ranges_sends_all_of_it_again(hub, tmp_path):
    hub.cut_after = 2_000_000
    hub.knows_ranges = False
    with pytest.raises(UsageError, match="cannot be downloaded"):
        download_archive(tmp_path, hub.endpoint)
    assert download_archive(tmp_path, hub.endpoint).read_bytes() == CONTENT


def test_another_version_is_not_put_behind_the_beginning_of_one(hub, tmp_path):
    hub.cut_after = 2_000_000
    with pytest.raises(UsageError, match="cannot be downloaded"):
        download_archive(tmp_path, hub.endpoint)
    hub.content = CONTENT[::-1]
    hub.sha256 = hashlib.sha256(hub.content).hexdigest()
    assert download_archive(tmp_path, hub.endpoint).read_bytes() == CONTENT[::-1]
    assert hub.asked == ["bytes=0-", "bytes=0-"]


def test_a_file_with_another_checksum_is_refused_and_removed(hub, tmp_path):
    hub.sha256 = "ab" * 32
    with pytest.raises(UsageError, match=r"has SHA-256 .*the Hub states abababababab.*run the same command again"):
        download_archive(tmp_path, hub.endpoint)
    assert list(tmp_path.iterdir()) == []


def test_a_server_without_a_checksum_is_refused(hub, tmp_path):
    hub.sha256 = "main-1"
    with pytest.raises(UsageError, match=r"states no SHA-256 .*'main-1'"):
        download_archive(tmp_path, hub.endpoint)
    assert hub.asked == []


def test_no_server_is_one_line(hub, tmp_path):
    with pytest.raises(UsageError, match="cannot be downloaded") as error:
        download_archive(tmp_path, "http://127.0.0.1:9")
    assert "\n" not in str(error.value)


def test_offline_is_one_line_with_status_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        prepare_tinystories.main(["download", "--data_cache_dir", str(tmp_path / "data")])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: TinyStories_all_data.tar.gz cannot be downloaded from roneneldan/TinyStories (")
    assert "HF_HUB_OFFLINE" in error
    assert error.count("\n") == 1


def test_the_checksum_of_a_whole_file_is_accepted(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    check_sha256(tmp_path / "a", hashlib.sha256(b"x").hexdigest())
    assert (tmp_path / "a").exists()


# --- unpacking


def link(name, target, kind):
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


GOOD = ("data00.json", shard(0))


@pytest.mark.parametrize(
    "evil",
    [
        ("../evil.json", b"[]"),
        ("a/../../evil.json", b"[]"),
        ("/tmp/lm_trials_evil.json", b"[]"),
        link("evil.json", "../../evil.json", tarfile.SYMTYPE),
        link("evil.json", "/etc/passwd", tarfile.SYMTYPE),
        link("evil.json", "../evil.json", tarfile.LNKTYPE),
        link("evil.json", "", tarfile.CHRTYPE),
    ],
    ids=["parent", "detour", "absolute", "symlink-up", "symlink-absolute", "hardlink", "device"],
)
def test_nothing_is_written_outside_the_folder(tmp_path, evil):
    archive = tmp_path / "deep" / ARCHIVE
    archive.parent.mkdir()
    archive.write_bytes(tar_of(GOOD, evil))
    name = evil.name if isinstance(evil, tarfile.TarInfo) else evil[0]
    if name.startswith("/"):
        # tarfile makes an absolute path a relative one: it is written, inside the folder.
        unpack_archive(archive, tmp_path / "deep" / FOLDER)
        assert not os.path.exists(name)
        assert (tmp_path / "deep" / FOLDER / name.lstrip("/")).is_file()
        return
    with pytest.raises(UsageError, match=r"is not safe to unpack \(.*\); remove it and download it from the Hub"):
        unpack_archive(archive, tmp_path / "deep" / FOLDER)
    assert [path.name for path in tmp_path.rglob("*")] == ["deep", ARCHIVE]


@pytest.mark.parametrize("keep", [0, 20, -200, -20])
def test_an_archive_that_is_cut_off_is_one_line_and_leaves_nothing(tmp_path, keep):
    (tmp_path / ARCHIVE).write_bytes(tar_of(GOOD)[:keep])
    with pytest.raises(UsageError, match="is truncated or broken") as error:
        unpack_archive(tmp_path / ARCHIVE, tmp_path / FOLDER)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [ARCHIVE]


def test_an_archive_of_something_else_is_refused(tmp_path):
    (tmp_path / ARCHIVE).write_bytes(tar_of(("readme.txt", b"hello")))
    with pytest.raises(UsageError, match=r"has no data\*.json shard"):
        unpack_archive(tmp_path / ARCHIVE, tmp_path / FOLDER)
    assert not (tmp_path / FOLDER).exists()


def test_the_command_fetches_unpacks_and_is_done_the_second_time(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/{revision}/{filename}")
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    flags = ["download", "--data_cache_dir", str(tmp_path / "data")]
    shards = prepare_tinystories.main(flags)
    assert [path.name for path in shards] == ["data2.json", "data10.json"]
    assert len(hub.asked) == 1
    assert "ingest" in capsys.readouterr().out
    assert prepare_tinystories.main(flags) == shards
    assert len(hub.asked) == 1

    source = ["--source", str(tmp_path / "data" / FOLDER), "--corpus", "mine", "--data_cache_dir", str(tmp_path)]
    manifest = prepare_tinystories.main(["ingest", *source, "--split_by", "shard"])
    assert manifest["stories"]["test"] == 60  # all of data2, the first shard as people count


def test_a_folder_that_holds_something_else_stays(tmp_path):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "notes.txt").write_text("mine")
    (tmp_path / ARCHIVE).write_bytes(tar_of(GOOD))
    with pytest.raises(UsageError, match="is not empty; remove it"):
        unpack_archive(tmp_path / ARCHIVE, tmp_path / FOLDER)
    assert (tmp_path / FOLDER / "notes.txt").read_text() == "mine"
