"""The examples of every lesson hold for the module it exports: a notebook that passes and a library that works are two claims.

Lessons whose examples name nothing that they export themselves, as front pages do, import the library already where they run as notebooks."""
import pytest
from tests import house

@pytest.mark.parametrize('path', [p for p in house.notebooks() if house.exports_to(p) and house.shows_its_exports(p)], ids=house.label)
def test_examples_against_the_library(path):
    r = house.lesson('library', path)
    assert r.returncode == 0, r.stdout
