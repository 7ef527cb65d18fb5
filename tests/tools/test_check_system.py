"""tools/check_system.py finds out what is missing before anything is installed."""

from __future__ import annotations

from tools import check_system


def test_a_missing_libnuma_is_an_error(monkeypatch, capsys) -> None:
    monkeypatch.setattr(check_system.sys, "platform", "linux")
    monkeypatch.setattr(check_system, "LIBNUMA", "libno-such-library.so.1")
    assert check_system.main() == 1
    assert "apt-get install libnuma1" in capsys.readouterr().err


def test_what_the_compiler_lacks_is_a_warning(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(check_system, "LIBNUMA", "libc.so.6")
    monkeypatch.setattr(check_system.sysconfig, "get_path", lambda name: str(tmp_path / name))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert check_system.main() == 0
    compiler, headers = capsys.readouterr().err.splitlines()
    assert "apt-get install g++" in compiler
    assert "apt-get install python3." in headers

    program = tmp_path / "my-c++"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "Python.h").touch()
    assert check_system.main() == 0
    assert capsys.readouterr().err == ""
