"""The command: each mistake is one line, and nothing heavy is imported for `--help`."""

import os
import socket
import subprocess
import sys
import urllib.request

import pytest
from dashboard_runs import free_port

from lm_trials.dashboard import command


def refused(capsys, *words):
    with pytest.raises(SystemExit) as left:
        command.main(list(words))
    lines = capsys.readouterr().err.splitlines()
    assert left.value.code == 2
    assert len(lines) == 1
    return lines[0]


def test_mistakes_are_one_line(runs, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    assert refused(capsys, str(tmp_path / "empty")).startswith(f"error: {tmp_path}/empty has no runs (no run.json)")
    assert "nowhere is not a folder" in refused(capsys, str(tmp_path / "nowhere"))
    assert refused(capsys, str(runs), "--export", "page.txt").endswith("is not the name of a page; end it with .html")
    assert "--export" in refused(capsys, str(runs), "--export", "a.html", "--space", "b")
    assert "--port 0 must be at least 1 and at most 65535" in refused(capsys, str(runs), "--port", "0")
    (tmp_path / "file").write_text("")
    assert "--export" in refused(capsys, str(runs), "--export", str(tmp_path / "file" / "a.html"))
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        line = f"error: --port {port} is in use; give another one, such as --port 8765"
        assert refused(capsys, str(runs), "--port", str(port)) == line
    monkeypatch.setitem(sys.modules, "gradio", None)
    line = "error: lm-trials dashboard needs gradio; pip install 'lm_trials[dashboard]'"
    assert refused(capsys, str(runs)) == line


def test_it_writes_a_page_and_a_space(runs, tmp_path, capsys):
    command.main([str(runs / "tiny-s0"), "--export", str(tmp_path / "new" / "page.html")])
    assert (tmp_path / "new" / "page.html").stat().st_size > 4e6
    assert "opens offline" in " ".join(capsys.readouterr().out.split())  # lines break where the path's length wants
    command.main([str(runs), "--space", str(tmp_path / "space")])
    assert "hf upload YOUR_NAME/space" in " ".join(capsys.readouterr().out.split())


def test_the_way_in_is_light():
    code = "import sys; from lm_trials.dashboard import command, tables; print(sorted(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "pandas", "gradio", "transformers", "plotly", "scipy", "datasets"):
        assert f"'{heavy}'" not in found
    assert "'numpy'" in found


@pytest.mark.slow
def test_it_serves_until_it_is_interrupted(runs):
    port = free_port()
    words = [sys.executable, "-m", "lm_trials.cli", "dashboard", str(runs), "--port", str(port)]
    own = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env={**os.environ, "PYTHONUNBUFFERED": "1"}, **own) as process:
        assert any(f"open  http://127.0.0.1:{port}/" in line for line in process.stdout)
        urllib.request.urlopen(f"http://127.0.0.1:{port}/").close()
        process.send_signal(2)
        assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0
