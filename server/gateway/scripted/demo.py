"""The built-in scenario: an agent writes a small program with a bug, its tests find it, a second turn mends it."""

from __future__ import annotations

from typing import Any, Final

from server.gateway.scripted.scenario import Scenario

WRITE_PROMPT: Final = (
    "Write roman.py, which turns numbers into Roman numerals, with tests in test_roman.py. Run the tests."
)
MEND_PROMPT: Final = "Mend the bug that the tests found, and show that they pass."

_ROMAN: Final = '''\
"""Numbers as Roman numerals."""

NUMERALS = [
    (1000, "M"), (900, "CM"), (500, "D"), (400, "CD"),
    (100, "C"), (90, "XC"), (50, "L"), (40, "XL"),
    (10, "X"), (5, "V"), (4, "IV"), (1, "I"),
]


def roman(number):
    """The Roman numeral of a whole number from 1 to 3999."""
    if not 1 <= number <= 3999:
        raise ValueError(f"{number} has no Roman numeral")
    result = ""
    for value, numeral in NUMERALS:
        while number >= value:
            result += numeral
            number -= value
    return result


if __name__ == "__main__":
    import sys

    for argument in sys.argv[1:]:
        print(argument, "=", roman(int(argument)))
'''

_TESTS: Final = """\
import unittest

from roman import roman


class RomanTest(unittest.TestCase):
    def test_simple_numbers_add_up(self):
        self.assertEqual(roman(3), "III")
        self.assertEqual(roman(2026), "MMXXVI")

    def test_four_and_nine_are_subtracted(self):
        self.assertEqual(roman(4), "IV")
        self.assertEqual(roman(9), "IX")

    def test_zero_has_no_numeral(self):
        with self.assertRaises(ValueError):
            roman(0)


if __name__ == "__main__":
    unittest.main()
"""

_PACE: Final = 0.02


def _say(text: str) -> dict[str, Any]:
    return {"text": text, "token_delay_s": _PACE}


def _call(tool: str, **arguments: Any) -> dict[str, Any]:
    return {"tool": tool, "input": arguments}


_RUN_TESTS: Final = _call("Bash", command="python3 -m unittest -v", description="Run the tests")

DEMO: Final = Scenario.model_validate(
    {
        "turns": [
            {
                "match": WRITE_PROMPT,
                "steps": [
                    {"thinking": "A table of values and numerals, largest first, is all it takes."},
                    _say("I'll write the program first, then its tests."),
                    _call("Write", file_path="/workspace/roman.py", content=_ROMAN),
                    _call("Write", file_path="/workspace/test_roman.py", content=_TESTS),
                    _say("Now the tests."),
                    _RUN_TESTS,
                    _say(
                        "roman.py and test_roman.py are written, and two of three tests pass. One fails: roman(9) "
                        "gives VIIII instead of IX: the table of numerals lacks 9. Say the word and I'll mend it."
                    ),
                ],
            },
            {
                "match": MEND_PROMPT,
                "steps": [
                    _say("The table goes from 10 straight to 5. Let me look at the line."),
                    _call("Read", file_path="/workspace/roman.py"),
                    _call(
                        "Edit",
                        file_path="/workspace/roman.py",
                        old_string='(10, "X"), (5, "V")',
                        new_string='(10, "X"), (9, "IX"), (5, "V")',
                    ),
                    _RUN_TESTS,
                    _call("Bash", command="python3 roman.py 9 1999 2026", description="Try it"),
                    _say("Mended: 9 is in the table now, and all three tests pass."),
                ],
            },
        ]
    }
)
"""Two turns; each prompt is matched word for word."""
