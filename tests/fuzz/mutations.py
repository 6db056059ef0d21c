"""How a sound file is spoilt: bytes at random, and values of JSON, YAML and safetensors aimed at.

Blind bytes mostly die in a parser; so a header or a record is also read, one value in it is
replaced by something evil, and the file is put together again with its lengths right.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

EVIL: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 2**31, 2**63, -(2**63), 2**70, 1e308, -1e308, 1e-320, 0.5),
    *(float("nan"), float("inf"), float("-inf")),
    *("", " ", "{}", "{}{}", "{", "}", "\x00", "\x1b]0;owned\x07", "\ud800", "\u202e", "é" * 300),
    *("../../../owned", "/etc/passwd", "C:\\owned", "a" * 5000, "NaN", "1e999", "__class__"),
    *("model.layers.99.mlp.down_proj.weight", "model.norm.weight", "model.layers.1.forward"),
    *("..", ".", "weight", "torch.float32", "F64", "I64", "BF16", "demo", "rome", "alphaedit"),
    *([], {}, [[]], [None], {"": ""}, {"str": 5}, [1, 2, 3], ["x"] * 40, {"__proto__": {}}),
)
TOKENS = (
    *(
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"9" * 5000,
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b'"\\ud800"',
    ),
    *(b'"a":1,"a":2,', b"[" * 3000, b'{"a":' * 3000, b"\n", b"\r\n", b",", b'"', b"{}", b"null"),
    *(b"../../../owned", b"&a [*a, *a]", b"!!python/object/apply:os.system ['true']", b"<<: *a"),
    *(
        b"!!python/name:os.system",
        b"? - : ",
        b"- - - - ",
        b"\t",
        b"'",
        b"%YAML 9",
        b"--- ",
        b"... ",
    ),
    *((2**60).to_bytes(8, "little"), b"\xff" * 8, b"\x00" * 8),
)


def spoilt(data: bytes, random: Random) -> bytes:
    """Return a file that is wrong in one to four ways."""
    for _ in range(random.randint(1, 4)):
        ways = (*BLIND, *AIMED, *AIMED)
        data = ways[random.randrange(len(ways))](data, random)
    return data[:200_000]


def _cut(data: bytes, random: Random) -> bytes:
    return data[: random.randint(0, len(data))]


def _flip(data: bytes, random: Random) -> bytes:
    if not data:
        return data
    place = random.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << random.randrange(8))]) + data[place + 1 :]


def _insert(data: bytes, random: Random) -> bytes:
    place = random.randint(0, len(data))
    return data[:place] + TOKENS[random.randrange(len(TOKENS))] + data[place:]


def _repeat(data: bytes, random: Random) -> bytes:
    start = random.randint(0, len(data))
    end = min(len(data), start + random.randint(1, 64))
    return data[:end] + data[start:end] * random.randint(1, 20) + data[end:]


def _drop(data: bytes, random: Random) -> bytes:
    start = random.randint(0, len(data))
    return data[:start] + data[start + random.randint(1, 32) :]


def _header_length(data: bytes, random: Random) -> bytes:
    sizes = (0, 1, len(data), max(0, len(data) - 8), 2**31, 2**60, 2**64 - 1)
    return sizes[random.randrange(len(sizes))].to_bytes(8, "little", signed=False) + data[8:]


def _value(data: bytes, random: Random) -> bytes:
    """Replace a value of JSON, of one line of it, or of a safetensors header and what is in it."""
    if len(data) > 8 and (size := int.from_bytes(data[:8], "little")) < len(data):
        try:
            header = json.loads(data[8 : 8 + size])
        except (ValueError, RecursionError):
            return _flip(data, random)
        held = header.get("__metadata__") if isinstance(header, dict) else None
        inner = held.get("errata") if isinstance(held, dict) else None
        if isinstance(inner, str) and random.random() < 0.7:
            held["errata"] = _spoil_text(inner, random)
        else:
            header = _spoil(header, random)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + size :]
    text = data.decode("utf-8", errors="replace")
    lines = text.split("\n")
    whole = _spoil_text(text, random)
    if whole != text or len(lines) < 2:
        return whole.encode("utf-8", errors="surrogatepass")
    place = random.randrange(len(lines))
    lines[place] = _spoil_text(lines[place], random)
    return "\n".join(lines).encode("utf-8", errors="surrogatepass")


def _spoil_text(text: str, random: Random) -> str:
    try:
        return json.dumps(_spoil(json.loads(text), random))
    except (ValueError, RecursionError):
        return text


def _spoil(value: Any, random: Random) -> Any:
    """Replace one value, somewhere in there; or take a key away, or add one."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        keys = list(value)
        key, change = keys[random.randrange(len(keys))], random.random()
        if change < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if change < 0.2:
            other = EVIL[random.randrange(len(EVIL))]
            return {str(other) if k == key else k: v for k, v in value.items()}
        return {**value, key: _spoil(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.8:
        place = random.randrange(len(value))
        return [*value[:place], _spoil(value[place], random), *value[place + 1 :]]
    return EVIL[random.randrange(len(EVIL))]


BLIND = (_cut, _flip, _flip, _insert, _insert, _repeat, _drop, _header_length)
AIMED = (_value,) * 4
