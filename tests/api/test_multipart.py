import pytest

from swapd.api.multipart import MAX_NAME_BYTES, ModelFinder
from swapd.errors import BadRequestError

TYPE = 'multipart/form-data; boundary="xyz"'
MODEL = b'--xyz\r\nContent-Disposition: form-data; name="model"\r\n\r\nsmall\r\n'
FILE = (
    b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="model"\r\nContent-Type: audio/wav\r\n\r\n'
    b'\x00\r\n--xy\r\nname="model"\r\n--xzz\r\n\r\n'
    b"\r\n"
)
END = b"--xyz--\r\n"


@pytest.mark.parametrize("body", [MODEL + FILE + END, FILE + MODEL + END, b"preamble\r\n" + FILE + MODEL + END])
def test_the_model_is_found_wherever_it_stands_and_however_the_body_is_cut(body: bytes) -> None:
    end_of_model = body.index(MODEL) + len(MODEL)
    for size in (1, 2, 3, 7, 64, len(body)):
        finder, fed = ModelFinder(TYPE), 0
        while not finder.found:
            finder.feed(body[fed : fed + size])
            fed += size
        assert finder.model_name == "small"
        assert fed < end_of_model + len("--xyz") + size
        rewritten = finder.head("org/tiny") + body[fed:]
        assert rewritten == body.replace(b"\r\n\r\nsmall\r\n", b"\r\n\r\norg/tiny\r\n")
        assert len(rewritten) == len(body) + len("org/tiny") - finder.name_bytes


def test_a_form_without_a_model_is_refused_at_its_end() -> None:
    finder = ModelFinder(TYPE)
    with pytest.raises(BadRequestError, match="required"):
        finder.feed(FILE + END)
    cut = ModelFinder(TYPE)
    cut.feed(FILE[:30])
    with pytest.raises(BadRequestError) as caught:
        cut.end()
    assert caught.value.param == "model"


def name_in(finder: ModelFinder, body: bytes) -> str:
    finder.feed(body)
    return finder.model_name


@pytest.mark.parametrize(
    "body",
    [
        MODEL.replace(b"small", b"x" * (MAX_NAME_BYTES + 200)),
        b"--xyz\r\nX: " + b"y" * 40_000,
        b"--xyz" + b" " * 40_000,
        MODEL.replace(b"small", b"\xff\xfe") + END,
    ],
)
def test_what_is_too_long_or_no_text_is_refused(body: bytes) -> None:
    finder = ModelFinder(TYPE)
    with pytest.raises(BadRequestError):
        name_in(finder, body)


@pytest.mark.parametrize(
    "content_type", ["", "application/json", "multipart/form-data", "multipart/mixed; boundary=x", "x; boundary=\r\n"]
)
def test_other_types_are_refused(content_type: str) -> None:
    with pytest.raises(BadRequestError, match="multipart"):
        ModelFinder(content_type)
