"""The registry of `harness dashboard --demo`: a quickstart of this project on two CPU cores, as it was recorded."""

import gzip
import tempfile
from pathlib import Path

from db.registry import Registry

BUNDLED = Path(__file__).parent / "demo.db.gz"


def unpack() -> str:
    """URL of a private copy in a temporary folder, brought to this version's schema. The bundled file is never changed."""
    folder = Path(tempfile.mkdtemp(prefix="harness-demo-"))
    path = folder / "registry.db"
    path.write_bytes(gzip.decompress(BUNDLED.read_bytes()))
    registry = Registry(f"sqlite:///{path}")
    registry.upgrade()
    registry.close()
    return registry.url
