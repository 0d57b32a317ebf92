"""The roofline against a table worked out by hand, and what a checkpoint's quantization means."""

import pytest
from predictions import real_text_config

from mlx_gemma4.bench.chips import CHIPS
from mlx_gemma4.bench.roofline import (
    BFLOAT16,
    WeightFormat,
    attention_operations,
    balanced_rows,
    decode_tokens_per_s,
    global_bytes,
    matrices,
    prefill_tokens_per_s,
    sliding_bytes,
    weight_bytes,
)
from mlx_gemma4.config.quantization import QuantizationSettings

TEXT = real_text_config()
BY_NAME = {chip.name: chip for chip in CHIPS}
K = 1024
FOUR, EIGHT = WeightFormat(4, 64), WeightFormat(8, 64)
KV8, KV4 = 2 * 0.53125, 2 * 0.28125

# Format of weights, bytes of a cached value, context; one column of the table below each.
COLUMNS = [
    *((FOUR, 2.0, n * K) for n in (1, 32, 128, 256)),
    *((FOUR, KV8, n * K) for n in (32, 128, 256)),
    (FOUR, KV4, 256 * K),
    *((EIGHT, 2.0, n * K) for n in (1, 32, 128, 256)),
    *((BFLOAT16, 2.0, n * K) for n in (1, 32, 128)),
]
DECODE = """
M1        9.7  9.0   7.4  6.0  9.5   8.5   7.5  8.5   5.2  5.0  4.5  3.9  2.8  2.8  2.6
M1 Pro    28.4 26.4  21.8 17.7 27.9  24.9  21.8 25.0  15.4 14.8 13.2 11.6 8.3  8.1  7.6
M1 Max    56.7 52.8  43.6 35.3 55.9  49.9  43.7 50.0  30.8 29.6 26.4 23.1 16.6 16.2 15.2
M1 Ultra  113.5 105.7 87.1 70.6 111.7 99.8 87.4 100.0 61.5 59.2 52.9 46.3 33.1 32.4 30.4
M2        14.2 13.2  10.9 8.8  14.0  12.5  10.9 12.5  7.7  7.4  6.6  5.8  4.1  4.1  3.8
M2 Pro    28.4 26.4  21.8 17.7 27.9  24.9  21.8 25.0  15.4 14.8 13.2 11.6 8.3  8.1  7.6
M2 Max    56.7 52.8  43.6 35.3 55.9  49.9  43.7 50.0  30.8 29.6 26.4 23.1 16.6 16.2 15.2
M2 Ultra  113.5 105.7 87.1 70.6 111.7 99.8 87.4 100.0 61.5 59.2 52.9 46.3 33.1 32.4 30.4
M3        14.2 13.2  10.9 8.8  14.0  12.5  10.9 12.5  7.7  7.4  6.6  5.8  4.1  4.1  3.8
M3 Pro    21.3 19.8  16.3 13.2 20.9  18.7  16.4 18.8  11.5 11.1 9.9  8.7  6.2  6.1  5.7
M3 Max    56.7 52.8  43.6 35.3 55.9  49.9  43.7 50.0  30.8 29.6 26.4 23.1 16.6 16.2 15.2
M3 Ultra  116.2 108.2 89.2 72.3 114.4 102.2 89.4 102.4 63.0 60.6 54.1 47.4 33.9 33.2 31.1
M4        17.0 15.9  13.1 10.6 16.8  15.0  13.1 15.0  9.2  8.9  7.9  6.9  5.0  4.9  4.6
M4 Pro    38.7 36.1  29.7 24.1 38.1  34.1  29.8 34.1  21.0 20.2 18.0 15.8 11.3 11.1 10.4
M4 Max    77.4 72.1  59.5 48.2 76.2  68.1  59.6 68.3  42.0 40.4 36.1 31.6 22.6 22.1 20.8
M5        21.7 20.2  16.7 13.5 21.4  19.1  16.7 19.1  11.8 11.3 10.1 8.9  6.3  6.2  5.8
M5 Pro    43.5 40.6  33.4 27.1 42.9  38.3  33.5 38.4  23.6 22.7 20.3 17.8 12.7 12.4 11.7
M5 Max    87.1 81.1  66.9 54.2 85.7  76.6  67.0 76.8  47.2 45.4 40.6 35.5 25.4 24.9 23.3
"""
# Prompts of 1K, 8K, 32K, 128K, 256K; ms a token of global attention at 128K: arithmetic, then
# memory with keys and values apart, and with values alone.
PREFILL = """
M1        117  111  97   66   46   13.22 31.46 15.73
M1 Pro    238  226  198  134  93   6.48  10.74 5.37
M1 Max    476  451  396  267  187  3.24  5.37  2.68
M1 Ultra  952  902  792  535  373  1.62  2.68  1.34
M2        162  153  135  91   63   9.54  21.47 10.74
M2 Pro    305  289  254  172  120  5.05  10.74 5.37
M2 Max    611  579  508  343  239  2.53  5.37  2.68
M2 Ultra  1221 1157 1017 686  479  1.26  2.68  1.34
M3        162  153  135  91   63   9.54  21.47 10.74
M3 Pro    287  272  239  161  113  5.37  14.32 7.16
M3 Max    638  604  531  358  250  2.42  5.37  2.68
M3 Ultra  1275 1208 1061 716  500  1.21  2.62  1.31
M4        180  170  150  101  70   8.59  17.90 8.95
M4 Pro    364  345  303  204  143  4.24  7.87  3.93
M4 Max    727  689  605  409  285  2.12  3.93  1.97
M5        620  587  516  348  243  2.49  14.04 7.02
M5 Pro    1235 1170 1028 694  484  1.25  7.00  3.50
M5 Max    2470 2340 2056 1387 968  0.62  3.50  1.75
"""


def rows_of(table: str) -> list[tuple[str, list[float]]]:
    """Return (chip, numbers) of each line of a table; names have one or two words."""
    rows = []
    for line in table.strip().splitlines():
        words = line.split()
        length = 2 if words[1].isalpha() else 1
        rows.append((" ".join(words[:length]), [float(word) for word in words[length:]]))
    return rows


def test_parameters_are_those_of_the_12b() -> None:
    counts = dict(matrices(TEXT))
    by_layer = [
        sum(n for path, n in counts.items() if f".layers.{index}." in path) for index in (0, 5)
    ]
    assert by_layer == [224_133_120, 241_827_840]
    assert counts["language_model.embed_tokens"] == 1_006_632_960
    assert sum(counts.values()) == 10_899_947_520 + 1_006_632_960


@pytest.mark.parametrize(
    ("weight_format", "gigabytes"),
    [
        (FOUR, 6.697),
        (WeightFormat(4, 32), 7.442),
        (EIGHT, 12.651),
        (WeightFormat(8, 32), 13.395),
        (BFLOAT16, 23.813),
    ],
)
def test_bytes_of_weights(weight_format: WeightFormat, gigabytes: float) -> None:
    assert weight_bytes(TEXT, lambda _: weight_format) / 1e9 == pytest.approx(gigabytes, abs=5e-4)


def test_bytes_of_mixed_weights() -> None:
    mixed = weight_bytes(TEXT, lambda path: EIGHT if ".mlp." in path else FOUR)
    assert mixed / 1e9 == pytest.approx(10.94, abs=6e-3)


def test_formats_of_a_checkpoint() -> None:
    settings = QuantizationSettings
    formats = {
        "affine": WeightFormat.from_settings(settings(64, 4)).bytes_per_weight,
        "nvfp4": WeightFormat.from_settings(settings(16, 4, "nvfp4")).bytes_per_weight,
        "mxfp4": WeightFormat.from_settings(settings(32, 4, "mxfp4")).bytes_per_weight,
    }
    assert formats == {"affine": 0.5625, "nvfp4": 0.5625, "mxfp4": 0.53125}


@pytest.mark.parametrize(("name", "expected"), rows_of(DECODE))
def test_decode_table(name: str, expected: list[float]) -> None:
    assert len(expected) == len(COLUMNS)
    for (weight_format, item_bytes, context), value in zip(COLUMNS, expected, strict=True):
        read = weight_bytes(TEXT, lambda _, weight_format=weight_format: weight_format)
        read += sliding_bytes(TEXT, context, item_bytes) + global_bytes(TEXT, context, item_bytes)
        # The table was rounded to one decimal.
        assert decode_tokens_per_s(BY_NAME[name], read) == pytest.approx(value, abs=0.051)


@pytest.mark.parametrize(("name", "expected"), rows_of(PREFILL))
def test_prefill_table(name: str, expected: list[float]) -> None:
    chip = BY_NAME[name]
    lengths = [n * K for n in (1, 8, 32, 128, 256)]
    for length, value in zip(lengths, expected, strict=False):
        # Within the rounding of the table and of the chip's own figures, three digits.
        assert prefill_tokens_per_s(chip, TEXT, length) == pytest.approx(value, abs=0.51, rel=1e-3)
    arithmetic, apart, values = expected[5:]
    operations = attention_operations(TEXT, window=0, context=128 * K)[1]
    bandwidth_ms = 1e3 / chip.bandwidth
    assert 1e3 * operations / (chip.prompt_tflops * 1e12) == pytest.approx(arithmetic, abs=6e-3)
    assert bandwidth_ms * global_bytes(TEXT, 128 * K) == pytest.approx(apart, abs=6e-3)
    only = global_bytes(TEXT, 128 * K, rows="value")
    assert bandwidth_ms * only == pytest.approx(values, abs=6e-3)


def test_every_chip_is_in_the_tables() -> None:
    assert [name for name, _ in rows_of(DECODE)] == [chip.name for chip in CHIPS]
    assert [name for name, _ in rows_of(PREFILL)] == [chip.name for chip in CHIPS]


def test_rows_of_global_layers() -> None:
    assert global_bytes(TEXT, 1) == 16_384
    assert global_bytes(TEXT, 1, rows="shared") == 10_240
    assert global_bytes(TEXT, 1, rows="value") == 8_192
    # Codes, and a scale of two bytes for the value and for the rotated key, in eight layers.
    assert global_bytes(TEXT, 1, rows="shared", kv_bits=8) == 8 * (640 + 4)
    assert global_bytes(TEXT, 1, rows="value", kv_bits=8) == 8 * (512 + 2)
    assert sliding_bytes(TEXT, 1) == 327_680
    assert sliding_bytes(TEXT, 5000) == sliding_bytes(TEXT, 1024)


def test_balanced_rows() -> None:
    assert balanced_rows(BY_NAME["M1 Max"], FOUR) == pytest.approx(7.5, abs=0.05)
    assert balanced_rows(BY_NAME["M4 Max"], FOUR) == pytest.approx(8.3, abs=0.05)
    assert balanced_rows(BY_NAME["M5 Max"], FOUR) == pytest.approx(25, abs=0.5)
    assert balanced_rows(BY_NAME["M5 Max"], EIGHT) == pytest.approx(48, abs=0.5)
