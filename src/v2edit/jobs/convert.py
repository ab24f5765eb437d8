"""Conversion of splats from one format to another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from v2edit.errors import UserError
from v2edit.jobs.options import expect_new_file
from v2edit.runs.layout import EDITED_SPLAT


@dataclass(frozen=True)
class Converted:
    """A converted splat: its file, the number of its Gaussians, the degree of the harmonics in it, and where the
    axes of the file that was read and of this one point, as RDF (right, down, front)."""

    path: Path
    gaussians: int
    degree: int
    axes_read: str
    axes: str

    @property
    def text(self) -> str:
        """What was converted, in a line."""
        turned = "" if self.axes == self.axes_read else f", turned from {self.axes_read} to {self.axes} coordinates"
        return f"{self.path}: {self.gaussians:,} Gaussians, harmonics of degree {self.degree}{turned}"


@dataclass(frozen=True)
class Convert:
    """Convert a splat to the format that the name of the new file says."""

    source: Annotated[Positional[Path], arg(metavar="IN")]
    """The splat to read."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """The file to write."""

    def run(self) -> Converted:
        """Read the one and write the other. Raises `UserError` for what cannot be read or written."""
        from v2edit.scenes.formats.splats import axes_of, check_writable, degree_in, read_splat_file, write_splat_file

        check_writable(self.out)
        expect_new_file(self.out, "OUT")
        if not self.source.exists():
            raise UserError(f"no such splat: {self.source}")
        if (edited := self.source / EDITED_SPLAT).is_file():
            raise UserError(f"{self.source} is a run: give its splat, {edited}")
        splat = read_splat_file(self.source)
        write_splat_file(self.out, splat)
        degree = degree_in(self.out, splat.gaussians)
        return Converted(self.out, len(splat.gaussians), degree, axes_of(self.source), axes_of(self.out))
