"""A head that comes again is compared, not parsed: what is taken for one whole message must be one, and nothing else."""

import pytest

from stepdown.proxy.heads import around_length, body_again

BEFORE, BEHIND = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: ", b"\r\naccept: */*\r\n\r\n"
LENGTHS = [*range(120), 989, 990, 998, 999, 1000, 1001, 9_998, 9_999, 10_000, 10_001, 99_999, 100_000, 1_234_567]


def message(body: bytes, length: object) -> bytes:
    return BEFORE + str(length).encode() + BEHIND + body


def test_any_length_is_found_again() -> None:
    for length in LENGTHS:
        body = b"x" * length
        data = message(body, length)
        assert around_length(data) == (BEFORE, BEHIND)
        assert body_again(data, BEFORE, BEHIND) == body


def test_one_byte_more_or_less_is_another_message() -> None:
    """A byte too many is the beginning of the next request, one too few an end that is still to come."""
    for length in LENGTHS:
        assert body_again(message(b"x" * (length + 1), length), BEFORE, BEHIND) is None
        if length:
            assert body_again(message(b"x" * (length - 1), length), BEFORE, BEHIND) is None


@pytest.mark.parametrize("stated", ["005", "+5", "5 ", " 5", "0x5", "5, 5", "", "-5", "5_0", "٥"])
def test_a_length_that_is_not_plain_digits_is_left_to_the_parser(stated: str) -> None:
    assert body_again(message(b"xxxxx", stated), BEFORE, BEHIND) is None


def test_a_part_of_a_head_is_not_a_message() -> None:
    data = message(b"", 0)
    assert all(body_again(data[:cut], BEFORE, BEHIND) is None for cut in range(len(data)))


def test_another_head_is_not_this_one() -> None:
    data = message(b"xxxxx", 5)
    assert body_again(data.replace(b"host: x", b"host: y"), BEFORE, BEHIND) is None
    assert body_again(data.replace(b"accept", b"Accept"), BEFORE, BEHIND) is None
