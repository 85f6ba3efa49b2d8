"""When to try again, as tables."""

import pytest

from orders.backoff import closed_for, delay


@pytest.mark.parametrize(
    ("failures", "chance", "after", "seconds"),
    [
        (1, 1.0, None, 2.0),
        (1, 0.5, None, 1.0),
        (2, 1.0, None, 4.0),
        (5, 0.5, None, 16.0),
        (9, 1.0, None, 512.0),
        (10, 1.0, None, 900.0),
        (1000, 1.0, None, 900.0),
        (1, 0.0, None, 0.1),
        (1, 1.0, 30.0, 30.0),
        (9, 0.5, 1.0, 1.0),
        (1, 1.0, 0.0, 0.1),
    ],
)
def test_delay(failures, chance, after, seconds):
    assert delay(failures, chance, after=after) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("closures", "chance", "after", "seconds"),
    [(1, 1.0, None, 2.0), (3, 1.0, None, 8.0), (6, 1.0, None, 60.0), (50, 0.0, None, 45.0), (1, 0.0, 120.0, 120.0)],
)
def test_closed_for(closures, chance, after, seconds):
    assert closed_for(closures, chance, after=after) == pytest.approx(seconds)
