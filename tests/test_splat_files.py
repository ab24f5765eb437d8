"""Splat files of others' programs: infinite parameters, headers with blanks, and which way is up."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData
from support.scenes import cameras_of, gaussians_of

from v2edit.errors import UserError
from v2edit.scenes.formats.ply import read_points
from v2edit.scenes.formats.splats import read_splat, read_splat_file, write_splat
from v2edit.scenes.rasterise import render


def with_columns(path: Path, columns: dict[str, float], rows: slice = slice(None)) -> Path:
    """Write a splat file whose columns have a value in some of the rows."""
    table = PlyData.read(str(write_splat(path, gaussians_of(0, 40, 0))), mmap=False)
    for name, value in columns.items():
        table["vertex"].data[name][rows] = value
    table.write(str(path))
    return path


def test_a_logit_of_infinity_is_opaque(data, caplog):
    path = data / "faults" / "p_inf.ply"
    scene, stored = read_splat(path), np.asarray(PlyData.read(str(path))["vertex"]["opacity"])
    assert len(scene) == len(stored) and not caplog.records and np.isinf(stored).any()
    alpha = torch.from_numpy(stored).sigmoid()
    torch.testing.assert_close(scene.logit_opacities.sigmoid(), alpha, rtol=0, atol=0)


@pytest.mark.parametrize("opacity", [np.inf, -np.inf])
def test_infinite_opacities_render_as_their_alpha(tmp_path, opacity):
    camera = cameras_of(0)
    scene = read_splat(with_columns(tmp_path / "a.ply", {"opacity": opacity}))
    almost = replace(scene, logit_opacities=torch.full((40,), float(np.clip(opacity, -60, 60))))
    assert len(scene) == 40 and torch.isfinite(scene.logit_opacities).all()
    torch.testing.assert_close(render(scene, camera).colours, render(almost, camera).colours)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_scale_of_0_is_flat(tmp_path, caplog, axes):
    """Surfels have one scale of 0, whose logarithm is minus infinity; the others stay as they are."""
    path = with_columns(tmp_path / "a.ply", {f"scale_{k}": -np.inf for k in range(axes)})
    scene, whole = read_splat(path), gaussians_of(0, 40, 0)
    assert len(scene) == 40 and not caplog.records
    assert (scene.log_scales.exp()[:, :axes] < 1e-8).all() and torch.isfinite(scene.log_scales).all()
    torch.testing.assert_close(scene.log_scales[:, axes:], whole.log_scales[:, axes:])
    assert torch.isfinite(render(scene, cameras_of(0)).colours).all()
    back = read_splat(write_splat(tmp_path / "b.ply", scene))
    torch.testing.assert_close(back.log_scales, scene.log_scales)


NOT_FINITE = {"opacity": np.nan, "scale_1": np.inf, "scale_2": 100, "x": np.inf, "f_dc_1": -np.inf, "rot_0": np.inf}


@pytest.mark.parametrize("column", NOT_FINITE)
def test_what_is_not_finite_when_activated_is_left_out_with_a_note(tmp_path, caplog, column):
    path = with_columns(tmp_path / "a.ply", {column: NOT_FINITE[column]}, slice(0, 3))
    assert len(read_splat(path)) == 37 and ["3 of 40" in line for line in caplog.messages] == [True]


def test_rotations_have_any_length(tmp_path):
    columns = {"rot_0": 1.0, "rot_1": 0.0, "rot_2": 0.0, "rot_3": 0.0}
    plain = render(read_splat(with_columns(tmp_path / "a.ply", columns)), cameras_of(0)).colours
    for length in (1e30, 1e-30):
        long = read_splat(with_columns(tmp_path / "b.ply", columns | {"rot_0": length}))
        torch.testing.assert_close(render(long, cameras_of(0)).colours, plain)


def test_gaussians_without_a_rotation_are_counted(tmp_path, caplog):
    path = with_columns(tmp_path / "a.ply", {f"rot_{k}": 0.0 for k in range(4)}, slice(0, 2))
    assert len(read_splat(path)) == 38 and "2 of 40" in caplog.text


def test_a_header_may_have_stray_blanks(data, tmp_path):
    faults = data / "faults"
    assert len(read_splat(faults / "p_trailing.ply")) == 300
    plain = (faults / "p_zup.ply").read_bytes()
    head, body = plain.split(b"end_header\n", 1)
    lines, expected = head.splitlines(), read_splat(faults / "p_zup.ply")
    endings = {"blank": b" \n", "tab": b"\t \n", "windows": b"\r\n", "mac": b"\r", "empty": b"\n\n"}
    for name, ending in endings.items():
        path = tmp_path / f"{name}.ply"
        last = ending if name != "empty" else b"\n"
        path.write_bytes(ending.join(lines) + ending + b"end_header" + last + body)
        back = read_splat(path)
        assert all(torch.equal(a, b) for a, b in zip(back.tensors().values(), expected.tensors().values(), strict=True))
    (tmp_path / "mark.ply").write_bytes(b"\xef\xbb\xbf" + plain)
    assert len(read_splat(tmp_path / "mark.ply")) == len(expected)
    accent = b"comment caf\xc3\xa9"
    (tmp_path / "accent.ply").write_bytes(b"\n".join([*lines[:2], accent, *lines[2:], b"end_header\n"]) + body)
    assert len(read_splat(tmp_path / "accent.ply")) == len(expected)


def test_a_text_file_of_points_may_have_stray_blanks(tmp_path):
    path = tmp_path / "a.ply"
    axes = "".join(f"property float {axis} \n" for axis in "xyz")
    path.write_text(f"ply \nformat ascii 1.0 \nelement vertex 2 \n{axes}end_header \n0 1 2\n3 4 5")
    points = read_points(path)
    assert points is not None and points.positions.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("line", "up"),
    [
        ("comment Vertical Axis: z", [0, 0, 1]),  # nerfstudio's
        ("comment vertical axis: -Y", [0, -1, 0]),
        ("comment Vertical Axis = +x", [1, 0, 0]),
        ("comment Generated by Nerfstudio", None),
        ("comment Vertical Axis: unknown", None),
    ],
)
def test_the_vertical_axis_of_a_header(tmp_path, line, up):
    path = write_splat(tmp_path / "a.ply", gaussians_of(0))
    head, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(head + b"\n" + line.encode() + b"\n" + rest)
    found = read_splat_file(path).up
    assert up is None if found is None else found.tolist() == up
    assert len(read_splat(path)) == 60


AXES = "".join(f"property float {axis}\n" for axis in "xyz")


def points_file(path: Path, kinds: str, rows: str, before: str = "", encoding: str = "ascii") -> Path:
    """Write a text PLY of one point a row, with colours whose kinds and names are given as `kind name, …`."""
    colours = "".join(f"property {kind}\n" for kind in kinds.split(", ") if kind)
    count = f"element vertex {len(rows.splitlines()) - before.count('element')}"
    path.write_text(f"ply\nformat {encoding} 1.0\n{before}{count}\n{AXES}{colours}end_header\n{rows}\n")
    return path


def colour_names(kind: str, names: str = "red green blue") -> str:
    return ", ".join(f"{kind} {name}" for name in names.split())


@pytest.mark.parametrize(
    ("kinds", "colours"),
    [
        (colour_names("uchar"), [255, 51, 1]),
        (colour_names("uchar", "diffuse_red diffuse_green diffuse_blue") + ", uchar alpha", [255, 51, 1]),
        (colour_names("ushort", "r g b"), [65535, 13107, 257]),
        (colour_names("int"), [255, 51, 1]),
        (colour_names("float", "Red Green Blue"), [1.0, 0.2, 1 / 255]),
        (colour_names("double"), [255.0, 51.0, 1.0]),
        (colour_names("float", "f_dc_0 f_dc_1 f_dc_2"), [(c / 255 - 0.5) / 0.28209479177387814 for c in (255, 51, 1)]),
    ],
)
@pytest.mark.parametrize("text", [True, False])
def test_colours_of_points_whatever_their_names_and_range(tmp_path, caplog, kinds, colours, text):
    path = points_file(
        tmp_path / "a.ply", kinds, " ".join(map(str, [1, 2, 3, *colours, 9][: 3 + len(kinds.split(", "))]))
    )
    if not text:
        table = PlyData.read(str(path), mmap=False)
        table.text = False
        table.write(str(path))
    points = read_points(path)
    assert points is not None and points.colours.tolist() == [[255, 51, 1]] and not caplog.records


@pytest.mark.parametrize(
    ("kinds", "row", "colour", "note"),
    [
        ("", "", [128, 128, 128], "no colours"),
        (colour_names("uchar", "Cd_x Cd_y Cd_z"), "1 2 3", [128, 128, 128], "Cd_x"),
        (colour_names("uchar"), "300 -2 7", [255, 0, 7], "1 of 1 colours"),
        (colour_names("float"), "3.1 1.5 0.2", [255, 255, 51], "not from 0 to 1"),  # of a high dynamic range
        (colour_names("float"), "3 2 1", [3, 2, 1], ""),
    ],
)
def test_colours_that_are_missing_or_too_bright_are_noted(tmp_path, caplog, kinds, row, colour, note):
    points = read_points(points_file(tmp_path / "a.ply", kinds, f"1 2 3 {row}"))
    assert points is not None and points.colours.tolist() == [colour]
    assert [note in line for line in caplog.messages] == [True] * bool(note or not kinds)


def test_what_comes_before_the_vertices_is_skipped(tmp_path, caplog):
    face = "element face 1\nproperty list uchar int vertex_indices\nproperty float area\n"
    path = points_file(tmp_path / "a.ply", colour_names("uchar"), "3 0 0 0 0.5\n1 2 3 4 5 6\n7 8 9 1 2 3", face)
    for text in (True, False):
        points = read_points(path)
        assert points is not None and points.positions.tolist() == [[1, 2, 3], [7, 8, 9]]
        assert points.colours.tolist() == [[4, 5, 6], [1, 2, 3]] and not caplog.records
        table = PlyData.read(str(path), mmap=False)
        table.text, table.byte_order = not text, ">"
        table.write(str(path))


def test_a_long_header_is_read_and_an_unknown_format_is_named(tmp_path):
    path = points_file(tmp_path / "a.ply", "", "1 2 3", "comment " + 100_000 * "x" + "\n")
    assert read_points(path) is not None
    with pytest.raises(UserError, match="of the format 'text', expected ascii"):
        read_points(points_file(path, "", "1 2 3", encoding="text"))


@pytest.mark.parametrize(
    ("before", "after"), [(b"\n", b""), (b"\r\n", b""), (b"", b"\n"), (b"", b"\r\n"), (b"", b"more")]
)
def test_a_stray_end_of_a_line_moves_no_gaussian(tmp_path, caplog, before, after):
    path = write_splat(tmp_path / "a.ply", gaussians_of(0, 50, 0))
    expected = read_splat(path)
    head, body = path.read_bytes().split(b"end_header\n")
    path.write_bytes(head + b"end_header\n" + before + body + after)
    for name, one in read_splat(path).tensors().items():
        assert torch.equal(one, expected.tensors()[name])
    assert ["4 bytes more" in line for line in caplog.messages] == [True] * (after == b"more")


def test_a_stray_end_of_a_line_that_may_be_anywhere_is_refused(tmp_path):
    path = tmp_path / "a.ply"
    body = b"\n" + np.array([[1, 2, 3], [4, 5, 6]], "<f4").tobytes()[:-1] + b"\n"  # 25 bytes of 24
    path.write_bytes(f"ply\nformat binary_little_endian 1.0\nelement vertex 2\n{AXES}end_header\n".encode() + body)
    with pytest.raises(UserError, match="stray end of a line"):
        read_points(path)


def test_faces_tell_a_stray_end_of_a_line_too(tmp_path):
    path = tmp_path / "a.ply"
    faces = "element face 1\nproperty list uchar int vertex_indices\n"
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex 1\n{AXES}{faces}end_header\n".encode()
    path.write_bytes(head + b"\n" + np.array([1, 2, 3], "<f4").tobytes() + b"\3" + np.arange(3, dtype="<i4").tobytes())
    points = read_points(path)
    assert points is not None and points.positions.tolist() == [[1, 2, 3]]
