"""The formats of splats: files of other programs, round trips within each format's precision, what is kept and what is
said of the rest, and damaged files."""

import gzip
import json
import shutil
import struct
import subprocess
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plyfile import PlyData, PlyElement
from support.scenes import gaussians_of
from support.splats import CORPUS, SIX, spz_of

from v2edit.cli.app import main
from v2edit.jobs.inputs import is_scene
from v2edit.scenes.formats import rows, splat_ply, spz
from v2edit.scenes.formats.coordinates import Conversion
from v2edit.scenes.formats.palette import fit_codebook, fit_palette, nearest
from v2edit.scenes.formats.rows import Splat, gather, iterate, morton_order
from v2edit.scenes.formats.splats import read_splat, read_splat_file, write_splat, write_splat_file
from v2edit.scenes.gaussians import SH_C0, Gaussians, sh_to_colour
from v2edit.scenes.rasterise.projection import harmonics, rotations
from v2edit.scenes.reading import choose_path, read_scene
from v2edit.scenes.viewer import start

WRITTEN = ["ply", "compressed.ply", "splat", "spz", "sog"]


def covariances(scene: Gaussians) -> torch.Tensor:
    axes = rotations(scene.quats.double()) * scene.log_scales.double().exp()[:, None, :]
    return axes @ axes.transpose(1, 2)


def nearest_of(scene: Gaussians, other: Gaussians) -> Gaussians:
    """Return a scene's Gaussians in the order of those of another that are nearest."""
    return scene.select(torch.cdist(other.means.double(), scene.means.double()).argmin(1))


def mild(seed: int, count: int, degree: int) -> Gaussians:
    """Gaussians whose numbers every format can hold."""
    one = gaussians_of(seed, count, degree)
    first = ((one.sh[:, :1] * 1.2).clamp(-1.7, 1.7)).expand(-1, -1, 3)
    return replace(one, sh=torch.cat([first, (one.sh[:, 1:] * 0.5).clamp(-0.99, 0.99)], dim=1))


# Six Gaussians, as they are written by splat-transform 2.7.1 (with Adobe's spz, whose coordinates are turned),
# GaussForge 0.6 (whose .spz is in the coordinates of the PLY) and GaussianSplats3D 0.4.7: the tolerances are of means,
# log scales, alphas, first and higher harmonics, and covariances.
FOREIGN = {
    "splat/six.compressed.ply": (1e-3, 2e-3, 2e-3, 1e-2, 2e-2, 2e-3),
    "spz/v4.spz": (2e-4, 0.032, 2e-3, 0.02, 0.07, 4e-2),
    "dot_splat/six.splat": (0, 1e-6, 4e-3, None, None, 2e-2),
    "ksplat/level0.ksplat": (0, 1e-6, 4e-3, None, 0, 1e-6),
    "ksplat/level1.ksplat": (2e-4, 1e-3, 4e-3, None, 1e-3, 1e-3),
    "ksplat/level2.ksplat": (2e-4, 1e-3, 4e-3, None, 0.02, 1e-3),
    # of so few Gaussians its palette has four entries
    "sog/six.sog": (2e-4, 0.03, 4e-3, 0.02, None, 4e-2),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_other_programs_hold_what_they_were_made_of(name):
    expected, scene = read_splat(SIX), read_splat(CORPUS / name)
    assert len(scene) == 6 and scene.degree in (0, 2)
    scene = nearest_of(scene, expected)
    means, scales, alphas, first, higher, shapes = FOREIGN[name]
    close = lambda a, b, atol: torch.testing.assert_close(a, b, rtol=0, atol=atol)  # noqa: E731
    close(scene.means, expected.means, means)
    close(scene.log_scales, expected.log_scales, scales)
    close(scene.logit_opacities.sigmoid(), expected.logit_opacities.sigmoid(), alphas)
    close(covariances(scene), covariances(expected), shapes)
    if first is None:  # colours are clipped
        close(sh_to_colour(scene.sh[:, 0]), sh_to_colour(expected.sh[:, 0]).clamp(0, 1), 4e-3)
    else:
        close(scene.sh[:, 0], expected.sh[:, 0], first)
    if higher is not None:
        close(scene.sh[:, 1:], expected.sh[:, 1:], higher)


def test_an_spz_of_another_program_that_does_not_turn_it_is_upside_down():
    """GaussForge writes the coordinates of the PLY where the format has RUB: they are read as the format says."""
    scene, expected = read_splat(CORPUS / "spz" / "v3.spz"), read_splat(SIX)
    torch.testing.assert_close(scene.means, expected.means * torch.tensor([1.0, -1, -1]), rtol=0, atol=2e-4)


def test_a_sog_of_a_folder_is_that_of_its_zip(tmp_path):
    with zipfile.ZipFile(CORPUS / "sog" / "six.sog") as archive:
        archive.extractall(tmp_path / "scene")
    zipped = read_splat(CORPUS / "sog" / "six.sog")
    for path in (tmp_path / "scene", tmp_path / "scene" / "meta.json"):
        assert is_scene(path)
        for one, other in zip(read_splat(path).tensors().values(), zipped.tensors().values(), strict=True):
            assert torch.equal(one, other)


def test_a_sog_of_version_1_has_bounds_instead_of_code_books(tmp_path):
    scene = mild(0, 40, 1)
    write_splat(tmp_path / "meta.json", scene)
    facts = json.loads((tmp_path / "meta.json").read_text())
    low, high = facts["scales"]["codebook"][0], facts["scales"]["codebook"][-1]
    old = {
        "means": facts["means"] | {"shape": [40, 3]},
        "scales": {"mins": [low] * 3, "maxs": [high] * 3, "files": ["scales.webp"]},
        "quats": facts["quats"],
        "sh0": {"mins": [-2, -2, -2, -5], "maxs": [2, 2, 2, 5], "files": ["sh0.webp"]},
        "shN": {"mins": -1, "maxs": 1, "files": facts["shN"]["files"]},
    }
    (tmp_path / "meta.json").write_text(json.dumps(old))
    back, order = read_splat(tmp_path), torch.from_numpy(morton_order(scene.means))
    torch.testing.assert_close(back.means, scene.means[order], rtol=0, atol=2e-4)
    alphas = torch.round(scene.logit_opacities[order].sigmoid() * 255)
    torch.testing.assert_close(back.logit_opacities, alphas / 255 * 10 - 5)
    places = nearest(np.array(facts["scales"]["codebook"]), scene.log_scales[order].numpy()) / 255
    np.testing.assert_allclose(back.log_scales, low + (high - low) * places, rtol=0, atol=1e-5)
    assert back.degree == 1 and back.sh.abs().max() <= 2


# Round trips.


def half_step(book: np.ndarray, values: torch.Tensor) -> torch.Tensor:
    """Return how far values are from the nearest number of a code book."""
    return (values[..., None] - torch.from_numpy(book)).abs().amin(-1)


def check_written(suffix: str, scene: Gaussians, back: Gaussians) -> None:
    """Check a scene that was written and read against the precision that its format states."""
    higher_than = lambda a, b: float((a - b).abs().max()) if a.numel() else 0.0  # noqa: E731
    alphas = higher_than(scene.logit_opacities.sigmoid(), back.logit_opacities.sigmoid())
    turns = (torch.nn.functional.normalize(scene.quats) * torch.nn.functional.normalize(back.quats)).sum(1).abs()
    angle = float(2 * torch.acos(turns.double().clamp(max=1)).max())
    extent = (scene.means.amax(0) - scene.means.amin(0)).max()
    scales, first = higher_than(scene.log_scales, back.log_scales), higher_than(scene.sh[:, 0], back.sh[:, 0])
    means, higher = higher_than(scene.means, back.means), higher_than(scene.sh[:, 1:], back.sh[:, 1:])
    assert alphas <= 0.5 / 255 + 1e-6
    if suffix == "splat":
        assert means == 0 and scales < 1e-5 and angle < 0.04
        assert first <= 0.5 / 255 / SH_C0 + 1e-5
    elif suffix == "spz":
        assert means <= float(scene.means.abs().max()) * 2**-22 + 2**-24 and scales <= 1 / 32 + 1e-6
        assert first <= 0.5 / 255 / 0.15 + 1e-5 and higher <= 1 / 128 + 1e-6 and angle < 0.006
    elif suffix == "compressed.ply":
        assert means <= extent / 1023 / 2 * 1.01 and higher <= 8 / 256 and angle < 0.006
        assert scales <= np.ptp(scene.log_scales.numpy()) / 1023 and first <= 8 / 255
    elif suffix == "sog":
        assert means <= float(1 + scene.means.abs().max()) * float(np.log1p(2 * scene.means.abs().max())) / 65535
        assert angle < 0.025  # code books are below
        assert scales <= np.ptp(scene.log_scales.numpy()) / 128 and first <= 4 / 128 and higher <= 2 / 128


@pytest.mark.parametrize("suffix", WRITTEN[1:])
@settings(max_examples=8)
@given(
    seed=st.integers(0, 999), count=st.integers(1, 600), degree=st.integers(0, 3), size=st.sampled_from([0.01, 1, 40])
)
def test_what_is_written_comes_back_within_the_precision_of_its_format(
    tmp_path_factory, suffix, seed, count, degree, size
):
    scene = mild(seed, count, degree)
    scene = replace(scene, means=scene.means * size)
    path = write_splat(tmp_path_factory.mktemp("splats") / f"scene.{suffix}", scene)
    if suffix in ("compressed.ply", "sog"):
        scene = scene.select(torch.from_numpy(morton_order(scene.means)))
    back = read_splat(path)
    assert len(back) == count and back.degree == (0 if suffix == "splat" else degree)
    check_written(suffix, scene.with_degree(back.degree), back)
    # What was read is what the format holds: written again it stays as it is.
    again = read_splat(write_splat(path.with_name(f"again.{suffix}"), back))
    if suffix in ("splat", "spz"):
        torch.testing.assert_close(again.means, back.means, rtol=0, atol=0)
        torch.testing.assert_close(again.sh, back.sh, rtol=0, atol=1e-6)


@settings(max_examples=8)
@given(seed=st.integers(0, 999), count=st.integers(1, 300), degree=st.integers(0, 3))
def test_a_ply_keeps_every_bit(tmp_path_factory, seed, count, degree):
    scene = gaussians_of(seed, count, degree)
    back = read_splat(write_splat(tmp_path_factory.mktemp("splats") / "scene.ply", scene))
    assert all(torch.equal(one, getattr(back, name)) for name, one in scene.tensors().items())


def test_code_books_and_palettes_are_near_what_they_stand_for():
    draw = np.random.default_rng(0)
    values = np.concatenate([draw.normal(size=20_000), [40.0]]).astype(np.float32)
    book = fit_codebook(values)
    errors = np.abs(book[nearest(book, values)] - values)
    assert errors[-1] < 0.2 and np.sqrt((errors**2).mean()) < 0.02 and (np.diff(book) >= 0).all()
    np.testing.assert_array_equal(np.abs(book[:, None] - values[:500]).argmin(0), nearest(book, values[:500]))
    few = draw.choice([-1.5, 0.25, 7.0], 900).astype(np.float32)
    assert (fit_codebook(few)[nearest(fit_codebook(few), few)] == few).all()
    vectors = (draw.normal(size=(40, 9))[draw.integers(0, 40, 3000)] + draw.normal(size=(3000, 9)) / 50).astype(
        np.float32
    )
    palette, labels = fit_palette(vectors, 256)
    assert len(palette) <= 256 and np.sqrt(((palette[labels] - vectors) ** 2).mean()) < 0.02
    assert fit_palette(vectors, 4096)[0] is vectors


@pytest.mark.parametrize("system", spz.SYSTEMS[1:])
def test_a_coordinate_system_turns_all_of_a_gaussian(system):
    """Positions, shapes, and colours from each direction; back again it is as it was."""
    scene, there = gaussians_of(1, 30, 3), Conversion.between("RDF", system)
    back = Conversion.between(system, "RDF")
    turned, _ = gather(map(there.apply, iterate(scene)), 30, 3, Path("a"))
    axes = torch.from_numpy(there.axes)
    torch.testing.assert_close(turned.means.double(), scene.means.double() @ axes.T)
    torch.testing.assert_close(covariances(turned), axes @ covariances(scene) @ axes.T)
    seen = torch.nn.functional.normalize(torch.randn(30, 3, generator=torch.Generator().manual_seed(0)).double())
    colours = (harmonics(seen, 3)[:, :, None] * scene.sh).sum(1)
    torch.testing.assert_close((harmonics(seen @ axes.T, 3)[:, :, None] * turned.sh).sum(1), colours, rtol=0, atol=1e-5)
    again, _ = gather(map(back.apply, iterate(turned)), 30, 3, Path("a"))
    torch.testing.assert_close(again.means, scene.means)
    torch.testing.assert_close(again.sh, scene.sh, rtol=0, atol=1e-5)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_earlier_versions_of_spz(tmp_path, version):
    scene = gaussians_of(0, 20, 1)
    (tmp_path / "a.spz").write_bytes(gzip.compress(spz_of(scene, version, flags=1)))
    back = read_splat_file(tmp_path / "a.spz")
    assert back.gaussians.antialiased
    turned = back.gaussians.means * torch.tensor([1.0, -1, -1])
    torch.testing.assert_close(turned, scene.means, rtol=1e-3, atol=2e-4)
    assert (back.gaussians.log_scales == -3.75).all() and back.gaussians.sh[:, 1:].abs().unique().item() == 0.5
    torch.testing.assert_close(back.gaussians.logit_opacities.sigmoid(), torch.full((20,), 200 / 255))
    alike = torch.eye(3).expand(20, 3, 3) * np.exp(-7.5)
    torch.testing.assert_close(covariances(back.gaussians).float(), alike, rtol=0.02, atol=1e-5)


def test_an_extension_of_spz_states_its_coordinates(tmp_path, caplog):
    scene = gaussians_of(0, 20, 0)
    extension = struct.pack("<III", 0xADBE0003, 4, 6) + struct.pack("<II", 0x12340001, 3) + b"abc"
    (tmp_path / "a.spz").write_bytes(gzip.compress(spz_of(scene, flags=2) + extension))
    torch.testing.assert_close(read_splat(tmp_path / "a.spz").means, scene.means, rtol=0, atol=2e-4)  # RDF
    assert "extensions" in caplog.text


def test_harmonics_above_degree_3_are_left_out_with_a_note(tmp_path, caplog):
    class Four:
        means, degree = gaussians_of(0, 20, 0).means, 4

        def __len__(self):
            return 20

    (tmp_path / "a.spz").write_bytes(gzip.compress(spz_of(Four())))
    assert read_splat(tmp_path / "a.spz").degree == 3 and "degree 4" in caplog.text


# What a file says beside its Gaussians.


def ply_with(path: Path, scene: Gaussians, comments: list[str] = []) -> Path:  # noqa: B006
    """Write a splat with normals, a label and a confidence of each Gaussian, and comments."""
    table = PlyData.read(str(write_splat(path, scene)), mmap=False)["vertex"].data
    wide = np.empty(len(table), [*table.dtype.descr, ("label", "u1"), ("confidence", "<f8")])
    for name in table.dtype.names:
        wide[name] = table[name]
    wide["nx"], wide["label"], wide["confidence"] = 0.5, np.arange(len(wide)) % 250, np.arange(len(wide)) / 7
    PlyData([PlyElement.describe(wide, "vertex")], comments=comments).write(str(path))
    return path


def test_further_properties_and_comments_of_a_ply_are_kept(tmp_path):
    comments = ["Generated by X", "SplatRenderMode: mip", "Vertical Axis: z"]
    path = ply_with(tmp_path / "a.ply", gaussians_of(0, 300, 1), comments)
    assert main(["convert", str(path), str(tmp_path / "b.ply")]) == 0
    before, after = (PlyData.read(str(tmp_path / name), mmap=False) for name in ("a.ply", "b.ply"))
    assert after.comments == comments
    for name in before["vertex"].data.dtype.names:
        np.testing.assert_array_equal(before["vertex"][name], after["vertex"][name])
        assert before["vertex"][name].dtype == after["vertex"][name].dtype


def test_further_properties_go_with_gaussians_that_are_untouched(tmp_path, caplog):
    splat = read_splat_file(ply_with(tmp_path / "a.ply", gaussians_of(0, 30, 1)))
    edited = splat.gaussians.joined(gaussians_of(1, 5, 1))
    edited.means[3, 0] += 1
    edited.sh[7, 2, 1] = 9
    extra = splat.edited(edited).extra
    assert splat.extra is not None and extra is not None and len(extra) == 35 and "7 of 35" in caplog.text
    kept = np.setdiff1d(np.arange(30), [3, 7])
    np.testing.assert_array_equal(extra[kept], splat.extra[kept])
    assert not extra["confidence"][[3, 7, *range(30, 35)]].any()


def test_left_out_gaussians_leave_no_gap_in_further_properties(tmp_path):
    scene = gaussians_of(0, 30, 0)
    scene.means[4, 1] = torch.nan
    splat = read_splat_file(ply_with(tmp_path / "a.ply", scene))
    assert len(splat.gaussians) == 29 and splat.extra is not None
    assert splat.extra["label"].tolist() == [k for k in range(30) if k != 4]


@pytest.mark.parametrize("suffix", WRITTEN)
def test_what_a_format_cannot_hold_is_said(tmp_path, capsys, suffix):
    source = ply_with(tmp_path / "a.ply", gaussians_of(0, 300, 1), ["antialiased 1"])
    assert main(["convert", str(source), str(tmp_path / f"b.{suffix}")]) == 0
    printed = capsys.readouterr()
    assert ("label, confidence" in printed.err) == (suffix != "ply")
    assert ("antialiasing" in printed.err) == (suffix == "splat") == ("harmonics above" in printed.err)
    assert ("RDF to RUB" in printed.out) == (suffix == "spz") and "300 Gaussians" in printed.out
    assert f"degree {0 if suffix == 'splat' else 1}" in printed.out
    back = read_splat_file(tmp_path / f"b.{suffix}")
    assert back.gaussians.antialiased == (suffix != "splat") and len(back.gaussians) == 300


def test_numbers_that_a_format_cannot_hold_are_counted(tmp_path, caplog):
    scene = mild(0, 50, 1)
    scene.log_scales[:7] = -15
    scene.sh[:9, 1] = 3
    back = read_splat(write_splat(tmp_path / "a.spz", scene))
    assert "scales of 7" in caplog.text and "harmonics of 9" in caplog.text
    assert (back.log_scales[:7] == -10).all() and (back.sh[:9, 1].abs() > 0.99).all()
    caplog.clear()
    far = replace(scene, means=torch.cat([torch.full((1, 3), 1e5), scene.means[1:]]))
    back = read_splat(write_splat(tmp_path / "far.spz", far))
    assert "steps of 0.015625" in caplog.text
    torch.testing.assert_close(back.means, far.means, rtol=0, atol=0.5 / 64)


def test_a_splat_that_is_large_is_read_and_written_piece_by_piece(tmp_path, monkeypatch):
    scene, sizes = gaussians_of(0, 20_000, 3), {}
    for module in (rows, splat_ply):
        monkeypatch.setattr(module, "CHUNK", 500)
    path = write_splat(tmp_path / "a.ply", scene)
    for name, work in {"read": lambda: read_splat(path), "write": lambda: write_splat(path, scene)}.items():
        tracemalloc.start()  # numpy's arrays; torch's are the Gaussians
        work()
        sizes[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert max(sizes.values()) < path.stat().st_size / 5, sizes


# The edit and the viewer.


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("written")
    scene = mild(0, 200, 1)
    paths = {suffix: write_splat(folder / f"scene.{suffix}", scene) for suffix in WRITTEN}
    (folder / "sog").mkdir()
    write_splat(folder / "sog" / "meta.json", scene)
    return paths | {"folder": folder / "sog", "ksplat": CORPUS / "ksplat" / "level2.ksplat"}


@pytest.mark.parametrize("kind", [*WRITTEN, "folder", "ksplat"])
def test_an_edit_takes_each_format(written, kind):
    assert is_scene(written[kind])
    scene = read_scene(written[kind])
    assert scene.gaussians is not None and len(choose_path("orbit", scene, 5, 32).cameras) == 5


@pytest.mark.parametrize("kind", ["spz", "folder"])
def test_the_viewer_takes_other_formats(written, kind):
    viewer = start(written[kind], 0)
    try:
        assert viewer.choice.value == "scene" and len(viewer.means["scene"]) == 200
    finally:
        viewer.server.stop()


@pytest.mark.heavy
@pytest.mark.parametrize("suffix", WRITTEN)
def test_splat_transform_reads_what_is_written(tmp_path, suffix):
    """PlayCanvas' program, through npm, which writes what it reads as an uncompressed PLY."""
    if shutil.which("npx") is None:
        pytest.skip("needs npx")
    scene = mild(0, 3000, 3)
    ours = tmp_path / f"a.{suffix}"
    write_splat_file(ours, Splat(scene))
    command = ["npx", "--yes", "@playcanvas/splat-transform@2.7.1", "-q", str(ours), str(tmp_path / "b.ply")]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    expected, back = read_splat(ours), read_splat(tmp_path / "b.ply")
    torch.testing.assert_close(back.means, expected.means, rtol=0, atol=1e-5)
    shapes = [one / one.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] for one in map(covariances, (back, expected))]
    atol = 2e-2 if suffix == "splat" else 1e-5  # it takes 127.5 for no rotation, others 128
    torch.testing.assert_close(*shapes, rtol=0, atol=atol)
    torch.testing.assert_close(back.sh, expected.sh, rtol=0, atol=1e-5)
    torch.testing.assert_close(back.logit_opacities.sigmoid(), expected.logit_opacities.sigmoid(), rtol=0, atol=1e-5)
