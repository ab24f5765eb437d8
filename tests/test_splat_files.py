"""Splat files of others' programs: infinite parameters, headers with blanks, and which way is up."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData
from support.scenes import cameras_of, gaussians_of

from v2edit.scenes.formats.ply import read_points, read_splat, read_vertical_axis, write_splat
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
    found = read_vertical_axis(path)
    assert up is None if found is None else found.tolist() == up
    assert len(read_splat(path)) == 60
