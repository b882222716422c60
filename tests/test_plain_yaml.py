"""YAML that is not a configuration: each oddity is an error with its place, soon, and never one of Python's own."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mgdet.cli.main import main
from mgdet.config import load
from mgdet.errors import ConfigError
from mgdet.plain_yaml import MOST_BYTES, MOST_LEVELS, MOST_VALUES, parse_yaml, require_plain

NINE = ",".join(["{}"] * 9)


def bomb(first, each):
    """Eleven lines that stand for 9^11 values."""
    rows = [f"a{n}: &a{n} {each.format(NINE.format(*[f'*a{n - 1}'] * 9))}" for n in range(1, 12)]
    return "\n".join([f"a0: &a0 {first}", *rows])


ODD = {
    "a list as a key": ("? [1, 2]\n: 3", "a key must be a text, and this is seq"),
    "a mapping as a key": ("{a: 1}: 2", "a key must be a text, and this is map"),
    "a number as a key": ("x: {1: 2}", "a key must be a text, and this is int"),
    "a truth value as a key": ("yes: 1", "a key must be a text, and this is bool"),
    "null as a key": ("~: 1", "a key must be a text, and this is null"),
    "a key twice": ("a: 1\n'a': 2", "key 'a' stands twice (line 2, column 1)"),
    "a number to the base 60": ("x: 1:30", "'1:30' is 90 to YAML; write that, or a text in quotes (line 1, column 4)"),
    "another one": ("x: -1:30.5", "'-1:30.5' is -90.5 to YAML"),
    "a number to the base 8": ("x: [010]", "'010' is 8 to YAML"),
    "no integer": ("x: !!int abc", "'abc' is no int (line 1, column 4)"),
    "an empty integer": ("x: !!int ''", "'' is no int"),
    "no number": ("x: !!float z", "'z' is no float"),
    "no truth value": ("x: !!bool maybe", "'maybe' is no bool"),
    "no date": ("x: !!timestamp abc", "could not determine a constructor for the tag"),
    "bytes": ("x: !!binary '???'", "could not determine a constructor for the tag"),
    "a set": ("x: !!set {a}", "could not determine a constructor for the tag"),
    "pairs": ("x: !!pairs [a: 1]", "could not determine a constructor for the tag"),
    "an object": ("x: !!python/name:os.system 1", "could not determine a constructor for the tag"),
    "a list of another type": ("x: !!int [1]", "expected a scalar node"),
    "deep lists": ("[" * 20_000, f"more than {MOST_LEVELS} levels deep"),
    "deep mappings": ("{a: " * 5000, f"more than {MOST_LEVELS} levels deep"),
    "deep dashes": ("- " * 5000, f"more than {MOST_LEVELS} levels deep"),
    "deep by aliases": (
        "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 5000)),
        f"more than {MOST_LEVELS} levels deep",
    ),
    "a list in itself": ("&a [*a]", "a value contains itself"),
    "a mapping in itself": ("x: &a {b: {c: *a}}", "a value contains itself"),
    "a bomb of lists": (bomb("[x,x]", "[{}]"), f"more than {MOST_VALUES:,} values"),
    "a bomb of mappings": (bomb("{x: 1}", "{{y: [{}]}}"), f"more than {MOST_VALUES:,} values"),
    "5,000 digits": ("x: " + "9" * 5000, "is no int"),
    "5,000 hexadecimal digits": ("x: 0x" + "f" * 5000, "an integer has more than 64 bits"),
    "base 60": ("x: " + "1:" * 4000 + "1", "an integer has more than 64 bits"),
    "beyond 64 bits": ("x: 9223372036854775808", "an integer has more than 64 bits"),
    "a null character": ("a: b\nx: a\0b", "the character '\\x00' is not allowed (line 2)"),
    "an escaped null character": ('x: "a\\0b"', "a text holds the control character '\\x00'"),
    "an escape sequence": ('x: "\\e[2J"', "a text holds the control character '\\x1b'"),
    "half a character": ("x: \ud800", "the character '\\ud800' is not allowed"),
    "a tab": ("x:\t- b", "found character '\\t' that cannot start any token"),
    "an unknown alias": ("a: *x", "found undefined alias 'x'"),
    "an anchor twice": ("&a a: &a b", "found duplicate anchor"),
    "another version": ("%YAML 9.9\n---\na: 1", "found incompatible YAML document"),
    "two documents": ("---\na: 1\n---\nb: 2", "expected a single document"),
    "a merge": ("a: &a {x: 1}\nb: {<<: *a}", "<< is not read"),
    "cut off": ("{a: [1, 2", "expected ',' or ']'"),
}


@pytest.mark.parametrize(("text", "said"), ODD.values(), ids=ODD)
def test_an_oddity_is_an_error_with_its_place(text, said):
    with pytest.raises(ValueError) as error:  # noqa: PT011  # compared below
        parse_yaml(text)
    assert said in str(error.value)
    assert "(line " in str(error.value)


@pytest.mark.parametrize("oddity", ["a list as a key", "deep mappings", "a bomb of mappings", "a null character"])
@pytest.mark.parametrize("command", ["train", "tune"])
def test_the_command_ends_with_status_2_and_names_the_file(tmp_path, capsys, command, oddity):
    text, said = ODD[oddity]
    (tmp_path / "c.yaml").write_text(text)
    assert main([command, str(tmp_path / "c.yaml")]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {tmp_path}/c.yaml: not valid YAML: ")
    assert said in err


@pytest.mark.parametrize("oddity", [k for k, (text, _) in ODD.items() if "\n" not in text and "\0" not in text])
def test_an_override_is_read_alike(tmp_path, oddity):
    with pytest.raises(ConfigError, match=r"key=value|not valid YAML"):
        load({"name": "x", "data": {"uri": "d"}}, [f"train={ODD[oddity][0]}"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("d: 2020-13-45", {"d": "2020-13-45"}),
        ("d: 2001-12-14t21:59:43.10-05:00", {"d": "2001-12-14t21:59:43.10-05:00"}),
        ("=: =", {"=": "="}),
        ("a: &a [1]\nb: [*a, *a]", {"a": [1], "b": [[1], [1]]}),
        ("x: -9223372036854775808", {"x": -(2**63)}),
        ("\ufeffx: 1", {"x": 1}),
        ("x: |\n  a\n  b", {"x": "a\nb"}),
        ("", None),
    ],
)
def test_what_is_plain_is_read(text, value):
    assert parse_yaml(text) == value


PLAIN = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False)),
        st.text("abc 'é#:-{", max_size=8),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc: {?", max_size=5), inner, max_size=4),
    max_leaves=6,
)  # fmt: skip


@given(PLAIN)
def test_what_is_written_is_read_back(value):
    assert parse_yaml(yaml.safe_dump(value)) == value
    require_plain(value)


@given(st.text(alphabet=st.sampled_from(list("ab01: \n-?[]{},&*!|>'\"%#<~.\t\0")), max_size=60))
def test_any_text_is_a_value_or_an_error(text):
    try:
        value = parse_yaml(text)
    except ValueError:  # any other kind of error fails the test
        return
    require_plain(value)


def test_a_file_in_another_encoding(tmp_path):
    (tmp_path / "c.yaml").write_bytes("name: größe".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"c\.yaml: not UTF-8 from byte 9 on; save it in that encoding"):
        load(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("name: x", encoding="utf-16")
    with pytest.raises(ConfigError, match="not UTF-8 from byte 1 on"):
        load(tmp_path / "c.yaml")


def test_a_huge_file_is_not_read(tmp_path):
    with open(tmp_path / "c.yaml", "wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no room on the disk
    with pytest.raises(ConfigError, match=f"it has more than {MOST_BYTES:,} bytes"):
        load(tmp_path / "c.yaml")


def contains_itself():
    value = {"name": "x"}
    value["data"] = value
    return value


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({1: 2}, "the key '1' is no text"),
        ({"name": "x", "data": {None: 1}}, "the key 'None' is no text"),
        (contains_itself(), "levels deep"),
        ({"name": "x\x1b[2J"}, "control character"),
        ({"name": "x", "seed": 10**6000}, "more than 64 bits"),
        ({"name": "x", "data": {"uri": "d"}, "plugins": [["a"] * 100_000]}, f"more than {MOST_VALUES:,} values"),
    ],
)
def test_a_mapping_from_python_is_held_to_the_same(tree, said):
    with pytest.raises(ConfigError, match=said):
        load(tree)


@pytest.mark.parametrize(
    "override", ["." * 5000 + "=1", "a." * 100 + "b=1", "..=1", ".=1", "seed.=1", "\udcff=1", "a\0=1"]
)
def test_odd_keys_of_overrides(override):
    with pytest.raises(ConfigError):
        load({"name": "x", "data": {"uri": "d"}}, [override])


@pytest.mark.slow
def test_a_long_chain_of_bases(tmp_path):
    for n in range(3000):
        (tmp_path / f"{n}.yaml").write_text(f"base: {n + 1}.yaml")
    with pytest.raises(ConfigError, match=r"base leads back to itself|levels"):
        load(tmp_path / "0.yaml")
