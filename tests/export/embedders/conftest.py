import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """Checkpoint, reading, bundle of a layout; written once, in this process."""
    import embedder_builds as builds

    made = {}

    def build(name: str, target=builds.TARGET, recipe: str = "f16"):
        key = name, target.name, recipe
        if key not in made:
            root = tmp_path_factory.mktemp("embedder")
            checkpoint, reading = builds.read(builds.LAYOUTS[name](root / "checkpoint"))
            builds.write(
                builds.planned(checkpoint, reading, target, recipe),
                reading,
                checkpoint,
                root / "bundle",
            )
            made[key] = checkpoint, reading, root / "bundle"
        return made[key]

    return build
