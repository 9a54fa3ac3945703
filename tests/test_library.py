"The examples of every lesson hold for the module it exports: a notebook that passes and a library that works are two claims."
import sys
import pytest
from tests import house

@pytest.mark.parametrize('path', [p for p in house.notebooks() if house.exports_to(p)], ids=house.label)
def test_examples_against_the_library(path):
    r = house.run(sys.executable, '-m', 'tests.lesson', 'library', path, timeout=600, leave_nothing=True)
    assert r.returncode == 0, r.stdout
