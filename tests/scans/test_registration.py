from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mfdiff_core.data.volumes import Volume
from mfdiff_core.errors import InputFault
from mfdiff_core.scans.registration import displacement_mm, register

pytest.importorskip("SimpleITK")

MakeHead = Callable[..., Volume]
Rigid = Callable[..., Any]
POINTS = np.array([[x, y, z] for x in (-60, 0, 60) for y in (-75, 0, 75) for z in (-60, 0, 60)])


@pytest.mark.parametrize(
    ("degrees", "mm"),
    [((0, 0, 0), (0, 0, 0)), ((4, -3, 5), (5, -7, 4)), ((-5, 5, -2), (-10, 6, -9))],
)
def test_known_motion_is_recovered_to_under_a_millimetre(
    make_head: MakeHead, rigid: Rigid, degrees: Any, mm: Any
) -> None:
    motion = rigid(degrees, mm)
    found = register(make_head("pet"), make_head("mr").moved(motion))
    assert displacement_mm(found.matrix @ motion, np.eye(4), POINTS) < 1.0
    assert found.information >= found.information_before


def test_same_images_give_the_same_motion_bit_for_bit(make_head: MakeHead, rigid: Rigid) -> None:
    mr = make_head("mr").moved(rigid((2, 1, -3), (3, 4, -5)))
    first, second = (register(make_head("pet"), mr).matrix for _ in range(2))
    assert np.array_equal(first, second)


def test_motion_is_rigid(make_head: MakeHead, rigid: Rigid) -> None:
    turn = register(make_head("pet"), make_head("mr").moved(rigid((3, 0, 2), (4, 0, 0)))).matrix
    assert turn[:3, :3] @ turn[:3, :3].T == pytest.approx(np.eye(3), abs=1e-9)
    assert np.linalg.det(turn[:3, :3]) == pytest.approx(1)


def test_storage_order_does_not_matter(make_head: MakeHead, rigid: Rigid) -> None:
    pet, mr = make_head("pet"), make_head("mr").moved(rigid((3, -2, 2), (4, 5, -3)))
    flip = np.diag([-1.0, -1, 1, 1])
    flip[:2, 3] = [pet.data.shape[0] - 1, pet.data.shape[1] - 1]
    turned = Volume(np.ascontiguousarray(pet.data[::-1, ::-1]), pet.affine @ flip)
    apart = displacement_mm(register(pet, mr).matrix, register(turned, mr).matrix, POINTS)
    assert apart < 0.5


def test_mr_of_another_table_position_is_found_by_its_mass(
    make_head: MakeHead, rigid: Rigid
) -> None:
    motion = rigid((0, 0, 0), (0, 0, -50))
    found = register(make_head("pet"), make_head("mr").moved(motion))
    assert displacement_mm(found.matrix @ motion, np.eye(4), POINTS) < 1.0


def test_mr_that_lies_too_far_away_is_refused(make_head: MakeHead, rigid: Rigid) -> None:
    with pytest.raises(InputFault, match=r"are plausible\); check that PET and MR are of the same"):
        register(make_head("pet"), make_head("mr").moved(rigid((0, 0, 0), (0, 300, 0))))
