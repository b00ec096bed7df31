"""What importing costs, and what it may never need."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgevtx

ROOT = Path(edgevtx.__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "openvino", "cv2", "PIL", "msgspec", "click", "rich")
OPTIONAL = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "openvino", "cv2", "scipy")


def python(code: str, *, cwd: Path = ROOT) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def modules(package: str) -> list[str]:
    """The names of all modules under a package's folder, without importing them."""
    folder = ROOT / package
    found = [package.replace("/", ".")]
    for info in pkgutil.iter_modules([str(folder)]):
        name = f"{package}/{info.name}"
        found += modules(name) if info.ispkg else [name.replace("/", ".")]
    return found


RUNTIME_SIDE = [name for name in modules("edgevtx") if not name.startswith("edgevtx.export")]


def test_import_edgevtx_loads_numpy_and_nothing_heavier() -> None:
    code = f"import sys, edgevtx; print([name for name in {HEAVY} if name in sys.modules])"
    assert python(code) == "[]"


def test_the_help_of_the_command_line_loads_no_runtime_and_no_torch() -> None:
    heavy = tuple(name for name in HEAVY if name not in ("click",))
    code = (
        "import sys; from edgevtx.cli import main; main(['--help']); main(['run', '--help']); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert python(code).splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", ["export", "runtimes"])
def test_links_resolve_and_the_bare_name_is_refused(name: str) -> None:
    assert (ROOT / "edgevtx" / name).is_symlink()
    assert (ROOT / "edgevtx" / name).resolve() == ROOT / name
    code = f"""
try:
    import {name}
except ImportError as error:
    assert 'edgevtx.{name}' in str(error), error
else:
    raise AssertionError('imported')
"""
    python(code)
    assert python(f"import edgevtx.{name}; print(edgevtx.{name}.__name__)") == f"edgevtx.{name}"


def test_every_module_of_the_runtime_side_imports_without_any_optional_package() -> None:
    assert len(RUNTIME_SIDE) > 30 and "edgevtx.runtimes.base" in RUNTIME_SIDE
    code = f"""
import importlib, sys
for name in {OPTIONAL}:
    sys.modules[name] = None
for name in {[name for name in RUNTIME_SIDE if name != "edgevtx.__main__"]}:
    importlib.import_module(name)
"""
    python(code)


def test_the_runtime_side_never_imports_the_export_side_at_import() -> None:
    code = f"""
import importlib, sys
for name in {[name for name in RUNTIME_SIDE if name != "edgevtx.__main__"]}:
    importlib.import_module(name)
print([name for name in sys.modules if name.startswith('edgevtx.export') or name in ('torch', 'onnx')])
"""
    assert python(code) == "[]"


def test_public_names() -> None:
    assert set(edgevtx.__all__) <= set(dir(edgevtx))
    assert len(edgevtx.__all__) <= 12
    assert all(getattr(edgevtx, name) is not None for name in edgevtx.__all__)
