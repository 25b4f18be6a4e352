"""EvalPlus' comparison of outputs. Runs inside the sandbox as the tests of a program, apart from the code under test.

Definitions: evalplus/evalplus @ HEAD, `eval/__init__.py` (`unsafe_execute`) and `eval/_special_oracle.py`. `harness.data`
holds (settings, inputs, expected), each marshalled and compressed (a few outputs are 100 MB of digits); `solution` is the
function under test.
"""

import marshal
import math
import time
import zlib

RTOL = 1e-7  # numpy.testing.assert_allclose's default
FLOAT_ATOL = 1e-6
SET_EQUAL = {
    *("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly"),
    *("larg_nnum", "intersection_array", "find_dissimilar", "Diff"),
}
NOT_NONE = {"check_str", "text_match_three", "text_starta_endb"}


def parts():
    return [marshal.loads(zlib.decompress(part)) for part in marshal.loads(harness.data)]  # noqa: F821


def reference(solution):
    """Leaves (seconds of each call, compressed outputs), from the reference solution."""
    settings, inputs, _ = parts()
    seconds, outputs = [], []
    for arguments in inputs:
        began = time.perf_counter()
        output = solution(*arguments)
        seconds.append(time.perf_counter() - began)
        outputs.append(output is not None if settings["entry_point"] in NOT_NONE and settings["oracle"] == "mbpp" else output)
    harness.output = marshal.dumps((seconds, zlib.compress(marshal.dumps(outputs), 1)))  # noqa: F821


def compare(solution):
    """Calls the solution with every input; raises AssertionError at the first output that differs."""
    settings, inputs, expected = parts()
    atol = settings["atol"]
    for arguments, wanted, seconds in zip(inputs, expected, settings["limits"], strict=True):
        harness.allow(seconds)  # noqa: F821
        output = solution(*arguments)
        if settings["oracle"] == "human_eval" and settings["entry_point"] == "find_zero":
            assert abs(sum(c * math.pow(output, i) for i, c in enumerate(*arguments))) <= settings["atol"]
            continue
        if atol == 0 and is_floats(wanted):
            atol = FLOAT_ATOL  # and so it stays for the inputs that follow, as upstream
        same = output == wanted
        if settings["oracle"] == "mbpp":
            same = special(settings["entry_point"], arguments, output, wanted, same, settings["atol"])
        if not same and atol != 0:
            assert type(output) is type(wanted), f"{arguments!r:.300}: a {type(output).__name__}"
            same = close(output, wanted, atol)
        assert same, f"{arguments!r:.300}: {output!r:.300} is not {wanted!r:.300}"


def special(name, arguments, output, wanted, same, atol):
    """Verdict of the MBPP tasks whose tests allow more than one output."""
    if name == "are_equivalent":
        return True
    if name == "sum_div":
        return same or output == 0
    if name == "surface_Area":
        base, height = arguments  # here height is the distance from the base to the apex
        return same or abs(output - round(base**2 + 2 * base * math.sqrt((base / 2) ** 2 + height**2))) <= atol
    if name == "digit_distance_nums":
        first, second = map(str, arguments)
        width = max(len(first), len(second))
        digits = zip(first.zfill(width), second.zfill(width), strict=True)
        return same or output == sum(abs(int(a) - int(b)) for a, b in digits)
    if name in SET_EQUAL:
        return set(output) == set(wanted)
    if name in NOT_NONE:
        return wanted == (output if isinstance(output, bool) else output is not None)
    return same


def is_floats(value):
    """Whether a value is a float, or a list or tuple of nothing but floats."""
    return isinstance(value, float) or (
        isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(item, float) for item in value)
    )


def close(output, wanted, atol):
    """numpy.allclose for nested sequences of numbers: |output - wanted| <= atol + RTOL |wanted|; never for anything else."""
    if isinstance(wanted, (list, tuple)) and isinstance(output, (list, tuple)):
        return len(output) == len(wanted) and all(map(close, output, wanted, [atol] * len(wanted)))
    if not all(isinstance(value, (int, float, complex)) for value in (output, wanted)):
        return False
    return output == wanted or (abs(wanted) < math.inf and abs(output - wanted) <= atol + RTOL * abs(wanted))
