"""A read-only view of a checkpoint as its authors published it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath

from mllm_export.config import Config, read_json_object
from mllm_export.errors import CheckpointError
from mllm_export.hashing import file_sha256
from mllm_export.records import record
from mllm_export.shards import Array, Shard, TensorInfo, open_shard
from mllm_export.source_file import SourceFile

TOWER_PREFIX = "tower:"
"""Stands before the names of tensors that come from the vision tower's own folder."""

INSIDE = "inside"
"""Value of --vision-tower that asks for the weights inside the checkpoint; the tower's config
is still looked for in the usual places."""

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLES = (
    "model.safetensors",
    "pytorch_model.bin",
    "checkpoints/latest-checkpoint.pt",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
"""The first two are transformers' and timm's, then Prismatic's, then open_clip's."""


_SIDE_FILES = {".json", ".model", ".txt"}
"""Configs and tokenizers: what stands beside the weights and the export may depend on."""


class Folder:
    """One folder of weights: a single tensor file, or shards with an index."""

    def __init__(self, path: Path) -> None:
        """Nothing is read until it is asked for."""
        self.path = path

    @cached_property
    def config(self) -> Config:
        """config.json."""
        file = self.path / "config.json"
        return Config(read_json_object(file), str(file))

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        """The tensor files, safetensors before pickles as transformers prefers them."""
        chosen = self.path / self._chosen
        if self._chosen not in _INDEXES:
            return (open_shard(chosen),)
        names = sorted(set(self._weight_map.values()))
        return tuple(open_shard(confined(self.path, name, chosen)) for name in names)

    @cached_property
    def tensors(self) -> dict[str, tuple[Shard, TensorInfo]]:
        """Every stored tensor by name, with the file that has it."""
        found: dict[str, tuple[Shard, TensorInfo]] = {}
        for shard in self.shards:
            for name, info in shard.infos().items():
                if name in found:
                    raise CheckpointError(
                        f"tensor '{name}' stands in {found[name][1].file} and in {info.file}"
                    )
                found[name] = (shard, info)
        return found

    @property
    def has_weights(self) -> bool:
        """Whether there is a tensor file or an index of some."""
        return any((self.path / name).is_file() for name in _INDEXES + _SINGLES)

    @cached_property
    def _chosen(self) -> str:
        """The one file that the weights are read from, or by: a folder may hold several."""
        for at, single in enumerate(_SINGLES):
            for name in (*_INDEXES[at : at + 1], single):
                if (self.path / name).is_file():
                    return name
        raise CheckpointError(f"{self.path} holds no weights; {_in_their_place(self.path)}")

    @cached_property
    def _weight_map(self) -> dict[str, str]:
        """Tensor to file, as the chosen index has it; empty where a single file was chosen."""
        if self._chosen not in _INDEXES:
            return {}
        file = self.path / self._chosen
        found = read_json_object(file).get("weight_map")
        if not isinstance(found, dict) or not found:
            raise CheckpointError(f"{file}: key 'weight_map' is missing or empty")
        for tensor, name in found.items():
            if not isinstance(name, str):
                raise CheckpointError(
                    f"{file}: 'weight_map' has {name!r} for tensor '{tensor}', needed: a file name"
                )
        return found

    def require_indexed(self) -> None:
        """Check that every tensor the index names is in the shards."""
        missing = sorted(set(self._weight_map) - set(self.tensors))
        if missing:
            file = self.path / self._chosen
            raise CheckpointError(f"{file} names tensor '{missing[0]}', no shard holds it")


def _in_their_place(folder: Path) -> str:
    """What stands where a model's weights were looked for, and what to do."""
    if (folder / "adapter_config.json").is_file():
        return (
            "adapter_config.json says that it is a LoRA adapter; merge it into its base model "
            "(peft: merge_and_unload), save that, and give its folder"
        )
    if (folder / "mm_projector.bin").is_file():
        return (
            "mm_projector.bin is a projector alone, as the first training stage leaves it; "
            "give the folder of the whole model"
        )
    return f"looked for {', '.join(_SINGLES + _INDEXES)}"


def confined(folder: Path, name: str, named_in: Path) -> Path:
    """`folder / name`, if that stays inside `folder`.

    Raises: CheckpointError for an absolute name or one that climbs out.
    """
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name:
        raise CheckpointError(f"{named_in}: file name '{name}' leads out of the folder; refused")
    return folder / pure


Asked = Path | str | tuple[tuple[str, Path], ...] | None
"""What --vision-tower said: a folder, `INSIDE`, or a folder for each of several names."""


@record
class Companion:
    """A folder that a model's parts come from beside the checkpoint's own."""

    name: str
    """What --vision-tower calls it."""
    published: str
    """Name of the published folder, the owner left out."""
    has_weights: bool = True
    """False: its configs and its tokenizer alone are taken."""

    @property
    def prefix(self) -> str:
        """Stands before the names of its tensors; enough to find the folder again."""
        return f"{self.name}@{self.published}:"


class Checkpoint:
    """The model's folder, and the folders of its parts where they have their own.

    Tensors of the tower's folder are named with `TOWER_PREFIX`, those of others with
    `Companion.prefix`.
    """

    def __init__(self, path: Path, vision_tower: Asked = None) -> None:
        """`vision_tower` is a folder, `INSIDE`, named folders, or None: where config.json says.

        Raises: CheckpointError when `path` is no folder with a config.json.
        """
        if not path.is_dir():
            raise CheckpointError(
                f"{path} is not a folder; give the checkpoint's folder, "
                "'reference' or 'reference-phi'"
            )
        self.path = path
        self.main = Folder(path)
        self.asked = vision_tower
        self._companions: dict[Companion, Folder] = {}

    @property
    def config(self) -> Config:
        """The model's config.json."""
        return self.main.config

    @property
    def _asked_tower(self) -> Path | None:
        """The folder of the only tower, where the user named one."""
        if self.asked is None or self.asked == INSIDE or isinstance(self.asked, tuple):
            return None
        return Path(self.asked)

    @cached_property
    def tower_places(self) -> tuple[Path, ...]:
        """Where the tower's folder is looked for, in order."""
        if self._asked_tower is not None:
            return (self._asked_tower,)
        name = self.config.text("mm_vision_tower", "")
        if not name:
            return ()
        last = PurePosixPath(name.replace("\\", "/")).name
        beside = self.path.resolve().parent
        places = (Path(name), self.path / name, beside / name, beside / last, self.path / last)
        return tuple(dict.fromkeys(places))

    @cached_property
    def tower(self) -> Folder | None:
        """The vision tower's own folder, if it is there.

        Raises: CheckpointError when a folder asked for by name is not there.
        """
        for place in self.tower_places:
            if (place / "config.json").is_file():
                return Folder(place)
        if self._asked_tower is not None:
            raise CheckpointError(
                f"vision tower folder {self._asked_tower} holds no config.json; "
                "give the folder of the published encoder"
            )
        return None

    def require_tower(self) -> Folder:
        """The tower's folder; an error that says where it was looked for."""
        if self.tower is None:
            places = ", ".join(str(place) for place in self.tower_places) or "nowhere"
            raise CheckpointError(
                f"the vision tower '{self.config.text('mm_vision_tower', '?')}' was not found; "
                f"looked in: {places}; put its folder there or name it with --vision-tower"
            )
        return self.tower

    def companion_places(self, companion: Companion) -> tuple[Path, ...]:
        """Where a companion is looked for, in order."""
        named = dict(self.asked) if isinstance(self.asked, tuple) else {}
        if companion.name in named:
            return (named[companion.name],)
        return (self.path.resolve().parent / companion.published, self.path / companion.published)

    def companion(self, companion: Companion) -> Folder:
        """A companion's folder; an error that says where it was looked for."""
        if companion not in self._companions:
            places = self.companion_places(companion)
            there = [place for place in places if _holds(place, companion)]
            if not there:
                raise CheckpointError(
                    f"'{companion.published}' was not found; looked in: "
                    f"{', '.join(str(place) for place in places)}; put the published folder there "
                    f"or name it with --vision-tower {companion.name}=DIR"
                )
            self._companions[companion] = Folder(there[0])
        return self._companions[companion]

    def infos(self, tower: bool, companions: tuple[Companion, ...] = ()) -> dict[str, TensorInfo]:
        """Every tensor by name, with those of the tower's own folder, and of companions."""
        self.main.require_indexed()
        found = {name: info for name, (_, info) in self.main.tensors.items()}
        if tower:
            for name, (_, info) in self.require_tower().tensors.items():
                found[TOWER_PREFIX + name] = info
        for one in companions:
            for name, (_, info) in self.companion(one).tensors.items():
                found[one.prefix + name] = info
        return found

    def shapes(
        self, tower: bool, companions: tuple[Companion, ...] = ()
    ) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor; see `infos`."""
        return {name: info.shape for name, info in self.infos(tower, companions).items()}

    @cached_property
    def names(self) -> frozenset[str]:
        """Stored tensors by name, without the tower's folder; none where there are no weights."""
        return frozenset(self.main.tensors) if self.main.has_weights else frozenset()

    def read(self, name: str) -> Array:
        """A read-only, memory-mapped view of one tensor in its stored dtype."""
        if name.startswith(TOWER_PREFIX):
            shard, info = self.require_tower().tensors[name.removeprefix(TOWER_PREFIX)]
        elif "@" in name:
            own, _, within = name.partition(":")
            shard, info = self.companion(_companion(own)).tensors[within]
        else:
            shard, info = self.main.tensors[name]
        return shard.read(info.name)

    def sources(
        self, tower: bool, companions: tuple[Companion, ...] = ()
    ) -> tuple[SourceFile, ...]:
        """Size and SHA-256 of every file the export depends on."""
        return tuple(_source(folder, path) for folder, path in self.source_paths(tower, companions))

    def source_paths(
        self, tower: bool, companions: tuple[Companion, ...] = ()
    ) -> tuple[tuple[Path, Path], ...]:
        """Every file the export depends on, behind the folder it is found in."""
        folders = [(self.main, True)] + ([(self.tower, True)] if tower and self.tower else [])
        folders += [(self.companion(one), one.has_weights) for one in companions]
        return tuple(
            (folder.path, path)
            for folder, with_weights in folders
            for path in _source_paths(folder, with_weights)
        )


def _holds(place: Path, companion: Companion) -> bool:
    # open_clip's folders of weights have no config.json.
    weights = companion.has_weights and Folder(place).has_weights
    return weights or (place / "config.json").is_file()


def _companion(text: str) -> Companion:
    name, _, published = text.partition("@")
    return Companion(name=name, published=published)


def _source_paths(folder: Folder, with_weights: bool) -> list[Path]:
    weights = [shard.path for shard in folder.shards] if with_weights else []
    side = [p for p in folder.path.iterdir() if p.suffix in _SIDE_FILES and p.is_file()]
    return sorted(set(weights + side))


def _source(folder: Path, path: Path) -> SourceFile:
    name = f"{folder.resolve().name}/{path.relative_to(folder).as_posix()}"
    return SourceFile(path=name, size_bytes=path.stat().st_size, sha256=file_sha256(path))
