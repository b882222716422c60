"""What export needs beside mgdet's own dependencies."""

from importlib.util import find_spec

from mgdet.errors import ConfigError


def require_packages() -> None:
    """See that ONNX can be written and run here. Raises `ConfigError`."""
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"export to ONNX (mgdet export, tracking.log_model, tracking.register) needs {' and '.join(missing)}: "
            "install the extra, pip install 'mgdet[export]'"
        )
