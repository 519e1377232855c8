"""Files are data: nothing in the package can run, unpack or unpickle what it reads."""

import ast
from pathlib import Path

import pytest

import cmb_jax

PACKAGE = Path(cmb_jax.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
MODULES = {
    *("pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "code", "xmlrpc"),
    *("torch", "yaml", "imp"),
}
"""Unpickling, and code."""
CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
METHODS = {"extract", "extractall", "unpack_archive", "read_pickle", "system", "popen", "literal_eval"}


def violations(source: str) -> list[str]:
    """What a source does that reading data never needs."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            plain = isinstance(node.func, ast.Name)
            if (plain and name in CALLS) or name in METHODS:
                found.append(name)
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", None)
                if keyword.arg == "allow_pickle" and value is not False:
                    found.append("allow_pickle")
                if keyword.arg == "shell" and value is not False:
                    found.append("shell")
                if keyword.arg == "autoescape" and value is not True:
                    found.append("autoescape")
    return found


@pytest.mark.parametrize(
    "bad",
    [
        "import pickle",
        "from marshal import loads",
        "eval(text)",
        "exec(compile(text, 'x', 'exec'))",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=choice)",
        "tarfile.open(path).extractall(folder)",
        "shutil.unpack_archive(path)",
        "subprocess.run(text, shell=True)",
        "jinja2.Environment(autoescape=False)",
    ],
)
def test_the_rule_sees_each_of_them(bad):
    assert violations(bad)


def test_the_package_keeps_the_rule():
    assert len(SOURCES) > 100
    broken = {path.relative_to(PACKAGE).as_posix(): violations(path.read_text("utf-8")) for path in SOURCES}
    assert {name: what for name, what in broken.items() if what} == {}


def test_arrays_with_objects_are_refused(tmp_path):
    import numpy as np

    np.save(tmp_path / "a.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):  # NumPy's own default, which the package leaves
        np.load(tmp_path / "a.npy")


def test_templates_mark_nothing_as_safe():
    templates = sorted((PACKAGE / "report" / "templates").iterdir())
    assert templates
    for path in templates:
        text = path.read_text("utf-8")
        assert "autoescape" not in text
        # one page has a script, whole from one file and named by its hash in the page's policy
        script = '<script>{% include "cohort.js" %}</script>' if path.name == "cohort.html" else ""
        assert "<script" not in text.lower().replace(script, "")
