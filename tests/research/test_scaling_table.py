"""The table of predicted scaling says what its plans say."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("scaling_table", ROOT / "tools" / "scaling_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plan(computing, moving, messages, weak_scaling=1.0):
    parts = {"computing": computing, "moving": moving, "messages": messages}
    predicted = {"seconds": sum(parts.values()), **parts, "weak_scaling": weak_scaling}
    memory = {"arguments": 2e6, "temporaries": 3e6, "code": 1e6}
    return {"predicted": predicted, "device": {"memory": memory}, "hardware": {"name": "TPU"}}


def test_speedup_efficiency_and_what_limits(tool):
    weak = [plan(6e-3, 3e-3, 1e-3, 0.9), plan(6e-3, 3e-3, 3e-3, 0.75)]
    strong = [plan(6e-3, 1e-3, 1e-3), plan(1e-3, 1e-3, 3e-3)]
    rows = tool.table(weak, strong).splitlines()[2:]
    assert rows == [
        "| 8 | 10.00 | 90% | 10% | 6 | 8.00 | 1.0 of 1 | 12% | operations |",
        "| 16 | 12.00 | 75% | 25% | 6 | 5.00 | 1.6 of 2 | 60% | messages |",
    ]


def test_the_page_is_filled_between_its_marks(tool, tmp_path, monkeypatch):
    asked = []

    def made(folder, hardware, devices, patches):
        asked.append((hardware, devices, patches))
        return plan(1e-3, 1e-3, 1e-3)

    monkeypatch.setattr(tool, "plan", made)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{tool.BEGIN}\nold\n{tool.END}\nafter\n")
    monkeypatch.setattr("sys.argv", ["tool", str(tmp_path / "plans"), str(page)])
    tool.main()
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert ("v5e", 256, 1) in asked  # strong: 256 patches over 256 devices
    assert ("h100", 256, 4) in asked  # weak: 4 on each
