"""Which errors are tried again, and what a person reads of one."""

import errno

import pytest
import ray.exceptions

from wiki_assets.defs.failures import TRANSIENT_OS, TRANSIENT_RAY, may_pass, message_of
from wiki_assets.errors import CorruptDump
from wiki_assets_tests.chaos import checks_compute as checks


def test_only_what_is_listed_is_tried_again():
    checks.only_listed_errors_are_tried_again()


@pytest.mark.parametrize("name", TRANSIENT_RAY)
def test_what_is_listed_is_an_error_of_rays(name):
    assert issubclass(getattr(ray.exceptions, name), ray.exceptions.RayError)
    assert TRANSIENT_RAY[name]


@pytest.mark.parametrize("number", sorted(set(errno.errorcode) - set(TRANSIENT_OS)))
def test_no_other_error_of_the_system_is_tried_again(number):
    assert not may_pass(OSError(number, "x"))


def test_a_person_reads_one_line_and_no_wrapping_of_rays():
    wrapped = ray.exceptions.RayTaskError("f", "Traceback …\n…", CorruptDump("page 7 is cut\nsecond line"))
    assert message_of(wrapped) == "page 7 is cut"
    assert message_of(ValueError("bad\nworse")) == "ValueError: bad"
