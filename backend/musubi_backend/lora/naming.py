"""What the names of one architecture's layers are, as data. Standard library only.

A *naming* is one way to write a transformer's module paths. The namings of an architecture are the columns of its table; a row is one
layer, or several where one naming fuses what another keeps apart (qkv and q, k, v). `{}` is the number of the block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

Row = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Naming:
    """One column of a table.

    id      that of the card where it is an architecture's own
    title   for reports
    of      the architectures whose files have it, the likeliest first; empty: the table's
    diffusers            whether it is diffusers'
    behind_transformer   who writes it behind the prefix `transformer.`
    """

    id: str
    title: str
    of: tuple[str, ...] = ()
    diffusers: bool = False
    behind_transformer: str = "diffusers"


@dataclass(frozen=True)
class Table:
    """The layers of one architecture: row -> naming -> names (several: the parts of a fused layer, in order).

    namings   the architecture's own comes first
    said      words of metadata that say whose the names are where several models have them; "" is a model that is not known here
    """

    namings: tuple[Naming, ...]
    rows: tuple[Row, ...]
    said: tuple[tuple[str, str], ...] = ()

    def column(self, naming: str) -> int | None:
        """Where the names of a naming stand; None where the table has none."""
        return next((column for column, one in enumerate(self.namings) if one.id == naming), None)

    def of(self, naming: str) -> tuple[str, ...]:
        """The architectures whose files have this naming, the likeliest first."""
        return next(one.of for one in self.namings if one.id == naming) or (self.namings[0].id,)

    def shared_with(self, architecture: str, title: str, naming: str, said: tuple[str, ...]) -> Table:
        """With an architecture that has the same layers and calls them as `naming` does, which gets its id."""
        namings = tuple(
            replace(one, id=architecture, title=f"{title}, or {one.title}", of=(architecture, *self.of(naming)))
            if one.id == naming
            else one
            for one in self.namings
        )
        return replace(self, namings=namings, said=(*((word, architecture) for word in said), *self.said))

    def said_by(self, metadata: Mapping[str, str]) -> str | None:
        """The architecture that a LoRA's metadata names, in whatever spelling; "" for a model that is not known here; None where it names
        none that has these names."""
        text = " ".join(metadata.get(key, "") for key in _SAYING).lower()
        return next((architecture for word, architecture in self.said if word in text), None)


_SAYING = ("ss_base_model_version", "modelspec.architecture", "modelspec.implementation", "ss_network_module")
