"""Files are written whole or not at all, and all by the same function."""

from __future__ import annotations

import ast
import errno
from pathlib import Path

import pytest

from search import SearchStopped
from search.files import replacing, write_bytes, write_text

ROOT = Path(__file__).parents[2]
WRITERS = {
    "write_text", "write_bytes", "savefig", "save_file", "dump", "to_csv", "write_image", "write_html", "save", "export",
    "open", "NamedTemporaryFile",
}  # fmt: skip
ELSEWHERE = {
    "search/files.py": "writes all others",
    "search/accuracy/cache.py": "appends lines",
    "search/latency/memory.py": "writes to /proc",
    "search/results/dashboard.py": "a temporary folder, from which Optuna copies",
}


def test_file_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    write_text(file, "{}")
    write_text(file, '{"ä": 1}')
    assert file.read_text(encoding="utf-8") == '{"ä": 1}'
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError(), OSError(errno.ENOSPC, "No space left on device")])
def test_file_that_is_not_finished_leaves_the_one_before(tmp_path: Path, error: BaseException) -> None:
    file = tmp_path / "result.json"
    write_text(file, "before")

    def fail() -> None:
        with replacing(file) as new:
            new.write_text("half of", encoding="utf-8")
            assert file.read_text(encoding="utf-8") == "before"
            raise error

    expected, message = (SearchStopped, "No space left on device") if isinstance(error, OSError) else (type(error), None)
    with pytest.raises(expected, match=message):
        fail()
    assert file.read_text(encoding="utf-8") == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_link_stays_a_link_and_a_device_a_device(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("target")
    write_text(link, "text")
    assert link.is_symlink()
    assert (tmp_path / "target").read_text(encoding="utf-8") == "text"
    write_bytes(Path("/dev/null"), b"nothing")
    assert not Path("/dev/null").is_file()


def test_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SearchStopped, match=r"nowhere/a.csv cannot be written \(No such file or directory\)"):
        write_text(tmp_path / "nowhere" / "a.csv", "")


def calls_that_write(file: Path) -> list[str]:
    """Calls of a module that write a file themselves: those of WRITERS that are not inside `with replacing(...)`."""
    calls = []

    def visit(node: ast.AST, is_inside: bool) -> None:
        if isinstance(node, ast.With):
            names = [ast.unparse(item.context_expr) for item in node.items]
            is_inside = is_inside or any(name.startswith("replacing(") for name in names)
        if isinstance(node, ast.Call) and not is_inside and writes(node):
            calls.append(f"{file.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)[:60]}")
        for child in ast.iter_child_nodes(node):
            visit(child, is_inside)

    visit(ast.parse(file.read_text(encoding="utf-8")), False)
    return calls


def writes(call: ast.Call) -> bool:
    """Whether a call writes a file by itself, rather than through search/files.py or into memory."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in WRITERS:
        return False
    if name in ("write_text", "write_bytes"):  # not the functions of the same names
        return isinstance(call.func, ast.Attribute)
    text = ast.unparse(call)
    if name == "open":
        return any(mode in text for mode in ("'w", "'a", "'r+", "'x", "b+"))
    if name == "dump":
        return not text.startswith("yaml.dump(")  # to a string
    if name in ("save", "export"):
        return text.startswith(("torch.save(", "torch.export.save(", "torch.onnx.export("))
    return True


def test_nothing_else_writes_files() -> None:
    files = [file for file in (ROOT / "search").rglob("*.py") if str(file.relative_to(ROOT)) not in ELSEWHERE]
    assert len(files) > 80
    assert [call for file in files for call in calls_that_write(file)] == []
